"""Secrets: kept apart, given to who needs them, told to nobody."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import fake_version, new_key, open_store, services_for, until
from test_actions import Hook, action, ended

from edge_agent.actions import Actions
from edge_agent.host import Outcome, PipelineHost
from edge_agent.policy import Policy
from edge_agent.secret_store import Secret, SecretStore
from edge_agent.store import Store
from pipelines.contract.errors import Refused, TidewireError

VALUE = "s3cr&t/of ours"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.actions.backlog.BACKOFF_FIRST_S", 0.05)


def cli(data_dir: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_agent", "secret", *words, "--data-dir", str(data_dir)]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)


def test_set_list_and_remove_on_the_command_line(tmp_path: Path) -> None:
    done = cli(tmp_path, "set", "pager", given=VALUE + "\n")
    assert done.returncode == 0 and VALUE not in done.stdout + done.stderr
    file = tmp_path / "secrets.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert SecretStore(tmp_path).values(["pager", "none"]) == {"pager": VALUE}
    [row] = json.loads(cli(tmp_path, "list", "--json").stdout)
    assert (row["name"], len(row["digest"])) == ("pager", 6) and VALUE not in json.dumps(row)
    assert cli(tmp_path, "remove", "pager").returncode == 0
    gone = cli(tmp_path, "remove", "pager")
    assert (gone.returncode, gone.stderr.splitlines()[1]) == (1, "  fix: see: tidewire-agent secret list")


@pytest.mark.parametrize(("name", "value"), [("a b", "x"), ("", "x"), ("1a", "x"), ("a", ""), ("a", "x\0y"), ("a", "x" * 70_000)])
def test_what_cannot_be_a_secret_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(Refused):
        SecretStore(tmp_path).put(name, value)
    assert not (tmp_path / "secrets.json").exists()


def test_a_running_agent_sees_what_another_process_wrote(tmp_path: Path) -> None:
    here, there = SecretStore(tmp_path), SecretStore(tmp_path)
    assert not here.all()
    there.put("a", "1")
    assert here.values(["a"]) == {"a": "1"}
    there.put("a", "2")
    there.put("b", "3")
    assert here.values("ab") == {"a": "2", "b": "3"}


def test_a_damaged_file_is_told_without_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text('{"a": "' + VALUE)
    with pytest.raises(TidewireError) as error:
        SecretStore(tmp_path).all()
    assert VALUE not in str(error.value) and "secrets.json" in str(error.value)
    assert VALUE not in repr(Secret(VALUE, "now"))


def run_action(tmp_path: Path, what: dict[str, Any], secrets: dict[str, str], policy: Policy | None = None) -> dict[str, Any]:
    """How the action ended, with every file of the agent checked for the value."""

    async def go(store: Store) -> dict[str, Any]:
        kept = SecretStore(tmp_path / "secrets")
        for name, value in secrets.items():
            kept.put(name, value)
        actions = Actions(store, policy or Policy(), kept)
        actions.offer("p", what)
        got = await ended(store, str(what["id"]))
        await actions.close()
        return got

    with open_store(tmp_path / "agent") as store:
        got = asyncio.run(asyncio.wait_for(go(store), 30))
    assert all(VALUE.encode() not in file.read_bytes() for file in (tmp_path / "agent").rglob("*") if file.is_file())
    return got


def test_a_webhook_gets_its_secret_and_nothing_else_does(tmp_path: Path) -> None:
    """Stored with the reference; resolved for the try; params and labels as they were when it was planned."""
    hook = Hook()

    async def url() -> str:
        return await hook.start()

    async def go(store: Store) -> None:
        kept = SecretStore(tmp_path / "secrets")
        kept.put("pager", VALUE)
        config = {"url": await url(), "headers": {"X-Key": "${secret:pager}", "X-Node": "${label:site} ${param:n} $${x}"}}
        what = action("a1", "webhook", config, values={"params": {"n": 4}, "labels": {"site": "lyon"}})
        actions = Actions(store, Policy(), kept)
        actions.offer("p", what)
        assert (await ended(store, "a1"))["status"] == "done"
        await actions.close()

    with open_store(tmp_path / "agent") as store:
        asyncio.run(go(store))
    [(headers, body)] = hook.calls
    assert (headers["x-key"], headers["x-node"]) == (VALUE, "lyon 4 ${x}")
    assert VALUE not in json.dumps(body)
    assert all(VALUE.encode() not in file.read_bytes() for file in (tmp_path / "agent").rglob("*") if file.is_file())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/${secret:pager}", "ftp://${secret:pager}", "http://x:${secret:pager}/"])
def test_no_error_text_tells_a_secret(tmp_path: Path, url: str, capfd: pytest.CaptureFixture[str]) -> None:
    got = run_action(tmp_path, action("a1", "webhook", {"url": url}), {"pager": VALUE})
    told = json.dumps(got) + "".join(capfd.readouterr())
    assert VALUE not in told and "s3cr" not in told, told


def test_a_program_gets_its_secret(tmp_path: Path) -> None:
    script = tmp_path / "horn"
    script.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/said\n')
    script.chmod(0o755)
    what = action("a1", "exec", {"program": str(script), "args": ["${secret:pager}"]})
    got = run_action(tmp_path, what, {"pager": VALUE}, Policy(exec=(str(script),)))
    assert got["status"] == "done" and (tmp_path / "said").read_text().strip() == VALUE


def test_an_action_whose_secret_is_missing_waits_for_it(tmp_path: Path) -> None:
    async def go(store: Store) -> None:
        kept = SecretStore(tmp_path / "secrets")
        actions = Actions(store, Policy(), kept)
        hook = Hook()
        what = action("a1", "webhook", {"url": await hook.start(), "headers": {"k": "${secret:pager}"}}, valid_for_us=10**12)
        actions.offer("p", {**what, "at_us": store.clock.now_us()})
        [waiting] = await until(lambda: _retried(store))
        assert "tidewire-agent secret set pager" in waiting["outcome"] and not hook.calls
        SecretStore(tmp_path / "secrets").put("pager", VALUE)
        assert (await ended(store, "a1"))["status"] == "done"
        await actions.close()

    async def _retried(store: Store) -> list[dict[str, Any]]:
        return [a for a in await store.action_log() if a["tries"]]

    with open_store(tmp_path / "agent") as store:
        asyncio.run(go(store))


def host_outcome(tmp_path: Path, version: Any, secrets: dict[str, str]) -> tuple[Outcome, dict[str, Any]]:
    async def go(store: Store) -> tuple[Outcome, dict[str, Any]]:
        services = services_for(store, tmp_path)
        for name, value in secrets.items():
            services.secrets.put(name, value)
        host = PipelineHost(services, version, {})
        return await host.run(), host.stats

    with open_store(tmp_path, new_key()) as store:
        return asyncio.run(go(store))


NEEDS = {
    "steps": [{"redact": {"badge": {"hash": {"key": "${secret:badge}"}}}}],
    "triggers": {"t": {"actions": {"on_raise": [{"webhook": {"url": "http://x", "headers": {"k": "${secret:pager}"}}}]}}},
}


@pytest.mark.parametrize("given", [{}, {"badge": "1"}, {"pager": "1"}])
def test_a_pipeline_without_one_of_its_secrets_fails_and_says_which(tmp_path: Path, given: dict[str, str]) -> None:
    outcome, _ = host_outcome(tmp_path, fake_version({"ready": 1}, {"stop": 1}, **NEEDS), given)
    missing = "pager" if "badge" in given else "badge"
    assert (outcome.kind, outcome.reason) == ("failed", f"secret {missing} is not set on this node")
    assert outcome.hint == f"on the node: tidewire-agent secret set {missing}"


def test_a_runner_gets_the_secrets_of_its_steps_alone(tmp_path: Path) -> None:
    version = fake_version({"ready": 1}, {"tell_secrets": 1}, {"stop": 1}, **NEEDS)
    outcome, stats = host_outcome(tmp_path, version, {"badge": "1", "pager": "2", "other": "3"})
    assert outcome.kind == "stopped" and stats == {"secrets": {"badge": "1"}}


def test_only_what_matters_to_a_pipeline_starts_it_anew(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        services = services_for(store, tmp_path)
        version, other = fake_version(**NEEDS), fake_version()
        seen = [services.secrets_digest(version)]
        for name, value in (("badge", "1"), ("badge", "2"), ("pager", "3")):
            services.secrets.put(name, value)
            seen.append(services.secrets_digest(version))
        assert len(set(seen)) == 4
        services.secrets.put("pager", "4")  # looked up when the action is performed
        services.secrets.put("unrelated", "5")
        assert services.secrets_digest(version) == seen[-1]
        assert services.secrets_digest(other) == ""
