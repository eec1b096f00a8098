"""Joining, and what the command line says when it does not work."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg
from support import new_key

from edge_agent import join as join_module
from edge_agent.config import Identity
from edge_agent.join import join
from pipelines.contract import subjects
from pipelines.contract.errors import OutOfReach, Refused
from pipelines.contract.keys import SIGNATURE_BYTES, Key
from pipelines.contract.messages import Join, JoinReply
from pipelines.contract.token import JoinToken, is_proven
from tests.nats_broker import Broker


class Office:
    """Answers joins as the control plane does; `lose` that many answers on the way."""

    def __init__(self, broker: Broker, lose: int = 0, error: str = "") -> None:
        self.broker, self.lose, self.error, self.key = broker, lose, error, new_key()
        self.token_key = new_key()
        self.members: list[str] = []

    def token(self, signer: Key | None = None) -> JoinToken:
        return JoinToken("tok", self.broker.url, (signer or self.key).public, "", self.token_key.seed)

    async def open(self) -> None:
        self._client = await nats.connect(self.broker.url)
        await self._client.subscribe(subjects.join("tok"), cb=self._answer)
        await self._client.flush()

    async def close(self) -> None:
        await self._client.close()

    async def _answer(self, message: Msg) -> None:
        claimed, _ = Join.unpack(message.data[SIGNATURE_BYTES:])
        request, [proof] = Join.unseal(claimed.public, message.data)
        assert is_proven(self.token_key.public, request.nonce, request.public, proof)
        if request.public not in self.members:
            self.members.append(request.public)
        if self.lose:
            self.lose -= 1
            return
        node = f"n{self.members.index(request.public)}"
        reply = JoinReply(request.nonce, node, request.name, "jwt", "author", {"site": "lyon"}, self.error, "make a new one")
        await message.respond(reply.seal(self.key))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_module, "_REPLY_S", 0.5)
    monkeypatch.setattr(join_module, "CONNECT_WITHIN_S", 1.0)


def test_join_is_idempotent_and_a_lost_reply_makes_no_second_node(broker: Broker, tmp_path: Path) -> None:
    async def go() -> None:
        office = Office(broker, lose=1)
        await office.open()
        with pytest.raises(OutOfReach):
            await join(office.token(), tmp_path / "n", "one")
        identity, is_new = await join(office.token(), tmp_path / "n", "one")
        assert (identity.name, identity.node, identity.labels, is_new) == ("one", "n0", {"site": "lyon"}, True)
        assert identity.key.public == office.members[0] and len(office.members) == 1
        assert (await join(office.token(), tmp_path / "n"))[1] is False
        with pytest.raises(Refused, match="another control plane"):
            await join(office.token(new_key()), tmp_path / "n")
        await office.close()

    asyncio.run(go())
    assert oct((tmp_path / "n" / "identity.json").stat().st_mode & 0o777) == "0o600"
    assert not (tmp_path / "n" / "joining.key").exists()


def test_i13_an_answer_of_somebody_else_is_not_believed(broker: Broker, tmp_path: Path) -> None:
    async def go() -> None:
        office = Office(broker)
        await office.open()
        with pytest.raises(Refused, match="signature"):
            await join(office.token(new_key()), tmp_path / "n")
        await office.close()

    asyncio.run(go())
    assert not (tmp_path / "n" / "identity.json").exists()


def run(tmp_path: Path, *words: str) -> tuple[int, str]:
    environment = {**os.environ, "TIDEWIRE_AGENT_DIR": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_the_command_line_says_what_and_how_to_fix_it(tmp_path: Path) -> None:
    token = JoinToken("tok", "nats://127.0.0.1:1", new_key().public, "", "").encode()
    for words, status, fix in [
        (["join", "nonsense"], 1, "fix: paste the whole line"),
        (["join", token], 3, "fix: check the address"),
        (["run"], 1, "fix: tidewire-agent join TOKEN"),
        (["status"], 3, "fix: start it: tidewire-agent run"),
        (["set", "ovens", "limit"], 2, "fix: for example"),
        (["run", "--until-eof"], 2, "fix: tidewire-agent run FILE"),
    ]:
        got, said = run(tmp_path, *words)
        assert (got, fix in said, said.count("\n")) == (status, True, 2), said
    assert run(tmp_path, "nonsense")[0] == 2


def test_a_wrong_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "agent.yaml").write_text("hartbeat_s: 3\n")
    status, said = run(tmp_path, "status")
    assert (status, "hartbeat_s" in said, "agent.yaml" in said) == (1, True, True)


def test_a_data_directory_whose_path_is_too_long_is_told_in_one_line(tmp_path: Path) -> None:
    place = tmp_path / ("long" * 30)
    place.mkdir()
    Identity(node="n", name="n", seed=new_key().seed, user_jwt="", control="", author="", url="nats://127.0.0.1:1").save(place)
    status, said = run(tmp_path, "run", "--data-dir", str(place))
    told = [line for line in said.splitlines() if "AF_UNIX" in line or "fix: " in line]
    assert (status, len(told)) == (1, 2), said
