"""Lookup tables as artifacts: registered, checked against what is deployed, issued, read in chunks out of a bounded memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from fake_node import FakeNode
from server_process import ServerProcess, until

from control_plane.artifacts import Chunks, Whole
from control_plane.assign import Deployment, Member, Plans, Target, assign
from control_plane.selector import parse_selector
from pipelines.contract import messages, subjects
from pipelines.contract.artifact import CHUNK_BYTES_MAX, LOOKUP_TABLE, Artifact
from pipelines.contract.folds import differences
from pipelines.contract.frames import sha256
from pipelines.contract.node_state import Reported

LINES = """
tidewire: 1
pipeline: {pipeline}
sources:
  sim:
    simulate: {{seed: 1}}
schema:
  ts: {{type: timestamp, event_time: true}}
  sensor: {{type: string}}
lookups:
  assets: {{artifact: {artifact}, key: [sensor]}}
steps:
  - lookup: {{table: assets, take: [line]}}
sinks:
  rows: {{lake: {{table: {table}}}}}
"""
CSV = "sensor,line\na,4\nb,5\n"


def lines(pipeline: str = "lines", artifact: str = "asset_register") -> str:
    return LINES.format(pipeline=pipeline, artifact=artifact, table=pipeline.replace("-", "_"))


def put(server: ServerProcess, text: str | bytes = CSV, *words: str, name: str = "asset_register") -> Any:
    file = server.data_dir.parent / "table.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return server.cli("artifact", "put", name, str(file), *words)


def test_a_new_table_reaches_nodes_without_a_new_version(server: ServerProcess) -> None:
    server.apply(lines())
    refused = server.cli("deploy", "lines", "-s", "all")
    assert refused.returncode == 1 and "there is no artifact 'asset_register'" in refused.stderr
    assert "tidewire artifact put asset_register FILE.csv" in refused.stderr
    assert put(server).returncode == 0

    async def story() -> None:
        node = await FakeNode.join(server.token(), "one")
        assert server.cli("deploy", "lines", "-s", "all").returncode == 0
        await node.exchange()
        await node.obey()
        assert server.json("nodes", "show", "one")["converged"]
        before = node.manifest
        assert before.assignments["lines"].artifacts == {"asset_register": sha256(CSV.encode())}
        rehearsed = put(server, CSV + "c,6\n", "--dry-run", "--reason", "line 6")
        assert "one" in rehearsed.stdout and "another table asset_register" in rehearsed.stdout, rehearsed.stdout
        await node.exchange()
        assert node.manifest == before, "a dry run changes nothing"
        node.pokes = 0
        assert put(server, CSV + "c,6\n", "--reason", "line 6").returncode == 0
        await until(lambda: node.pokes)
        await node.exchange()
        after = node.manifest.assignments["lines"]
        assert (after.digest, after.number) == (before.assignments["lines"].digest, 1)
        assert after.artifacts == {"asset_register": sha256((CSV + "c,6\n").encode())}
        why = server.json("nodes", "show", "one")["why"]
        assert "not yet with the wanted table asset_register" in why
        await node.obey()
        assert server.json("nodes", "show", "one")["converged"]
        shown = server.json("artifact", "show", "asset_register")
        assert (shown["number"], shown["rows"], shown["columns"]) == (2, 3, ["sensor", "line"])
        assert shown["pipelines"] == ["lines@1"] and shown["nodes"] == [
            {"node": "one", "pipeline": "lines", "wanted": True, "in_use": True}
        ]
        await node.close()

    asyncio.run(story())
    assert "unchanged: asset_register@2" in put(server, CSV + "c,6\n").stdout
    assert put(server, CSV, "--reason", "back").returncode == 0  # what an older one held is news again
    listed = server.json("artifact", "list", "asset_register")["artifacts"]
    assert [(row["number"], row["reason"]) for row in listed] == [(3, "back"), (2, "line 6"), (1, "")]
    assert [row["number"] for row in server.json("artifact", "list")["artifacts"]] == [3]
    assert "asset_register@2 (lookup-table), 24 bytes, 3 rows" in server.cli("artifact", "show", "asset_register@2").stdout


def test_a_pinned_number_stays(server: ServerProcess) -> None:
    server.apply(lines(artifact="asset_register@1"))
    assert put(server).returncode == 0

    async def story() -> None:
        node = await FakeNode.join(server.token(), "one")
        assert server.cli("deploy", "lines", "-s", "all").returncode == 0
        await node.exchange()
        assert put(server, "sensor\nx\n").returncode == 0, "it is for nobody: the line is not asked of it"
        await node.exchange()
        assert node.manifest.assignments["lines"].artifacts == {"asset_register@1": sha256(CSV.encode())}
        await node.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("sensor\na\n", 'the table has no column "line"'),
        ("senzor,line\na,4\n", 'lookups.assets.key: the table has no column "sensor"; did you mean "senzor"?'),
        ("sensor,line\na,4\na,5\n", "two rows have the key a"),
        ("sensor,line\n,4\n", "a row has no key"),
    ],
)
def test_a_table_that_a_deployed_pipeline_cannot_use_is_refused(server: ServerProcess, table: str, says: str) -> None:
    assert put(server).returncode == 0
    for pipeline in ("lines", "more-lines", "only-applied"):
        server.apply(lines(pipeline))
    for pipeline in ("lines", "more-lines"):
        assert server.cli("deploy", pipeline, "-s", "all").returncode == 0
    refused = put(server, table)
    assert refused.returncode == 1 and says in refused.stderr
    assert "lines@1" in refused.stderr and "more-lines@1" in refused.stderr, "all of them are named"
    assert "only-applied" not in refused.stderr
    assert [row["number"] for row in server.json("artifact", "list")["artifacts"]] == [1], "nothing was changed"


def test_what_is_no_table_is_refused_and_what_nobody_deployed_is_warned_of(server: ServerProcess) -> None:
    for table, says in [
        ("", "Empty CSV file"),
        ("a,a\n1,2\n", "two columns are called a"),
        ("a,b\n1\n", "Expected 2 columns, got 1"),
        ("a\nx\n\xff\n".encode("latin-1"), "line 3 is not UTF-8"),
    ]:
        refused = put(server, table)
        assert refused.returncode == 1 and says in refused.stderr and "fix:" in refused.stderr, (table, refused)
    for name in ("../x", "a b", "asset_register@3"):
        assert "is no name for an artifact" in put(server, name=name).stderr
    assert "there is no artifact 'nothing'" in server.cli("artifact", "show", "nothing").stderr
    server.apply(lines())
    done = put(server, "sensor,line\na,4\na,5\n")
    assert done.returncode == 0 and "warning: lines@1, which is deployed nowhere, cannot use it" in done.stdout
    misfit = server.cli("deploy", "lines", "-s", "all")
    assert misfit.returncode == 1 and "two rows have the key a" in misfit.stderr, "nor is it deployed on such a table"
    assert put(server, b"x" * (64 * 1024 * 1024 + 1)).returncode == 1


def test_chunks_come_out_of_the_memory_of_the_server(server: ServerProcess) -> None:
    data = ("sensor,line\n" + "".join(f"s{i:07},{i}\n" for i in range(100_000))).encode()
    assert put(server, data).returncode == 0

    async def story() -> None:
        node = await FakeNode.join(server.token(), "one")
        got = b""
        while len(got) < len(data):
            request = messages.ArtifactRequest(node.id, os.urandom(8).hex(), sha256(data), len(got))
            raw = await node.request(subjects.artifact(node.id), request.pack())
            reply, blobs = messages.ArtifactReply.unseal(node.token.control, raw)
            assert (reply.size, reply.kind, reply.number, reply.error) == (len(data), LOOKUP_TABLE, 1, "")
            assert 0 < len(blobs[0]) <= CHUNK_BYTES_MAX
            got += blobs[0]
        Artifact(LOOKUP_TABLE, got, blobs[1]).verify(sha256(data), node.author)
        request = messages.ArtifactRequest(node.id, "n", sha256(data), len(data) + 1)
        reply, _ = messages.ArtifactReply.unseal(
            node.token.control, await node.request(subjects.artifact(node.id), request.pack())
        )
        assert "there is no artifact" in reply.error
        await node.close()

    asyncio.run(story())


def test_i9_the_memory_for_chunks_is_bounded() -> None:
    loads: list[str] = []

    async def load(digest: str) -> Whole | None:
        loads.append(digest)
        return None if digest == "none" else Whole("lookup-table", b"x" * 40, b"", 1)

    async def story() -> None:
        chunks = Chunks(load, bytes_max=100)

        async def ask(digest: str) -> messages.ArtifactReply:
            return (await chunks.answer("n1", messages.ArtifactRequest("n1", "1", digest).pack()))[0]

        for digest in ("a", "b", "a", "a"):
            assert (await ask(digest)).size == 40
        assert loads == ["a", "b"]
        await ask("c")  # b is out: a was used since
        await ask("a")
        await ask("b")
        assert loads == ["a", "b", "c", "b"]
        assert (await ask("none")).error

    asyncio.run(story())


def test_plans_say_which_bytes_a_version_gets() -> None:
    target = Target(parse_selector("all"), 1, "v1")
    plans = Plans((Deployment("p", (target,)),), artifacts={"v1": {"assets": "d1"}, "v2": {"assets": "d2"}})
    first = assign(Member("n1", "one", {}), plans, term=1)
    assert first.assignments["p"].artifacts == {"assets": "d1"}
    assert assign(Member("n1", "one", {}, first), plans, term=1) == first
    other = Plans(plans.deployments, artifacts={"v1": {"assets": "d9"}})
    second = assign(Member("n1", "one", {}, first), other, term=1)
    assert second.generation == first.generation + 1
    told = Reported("v1", 1, "running", artifacts={"assets": "d1"})
    assert differences(first, {"p": told}) == {}
    assert "not yet with the wanted table assets" in differences(second, {"p": told})["p"]


def test_the_file_is_read_from_stdin_too(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CSV.encode())))
    assert server.cli("artifact", "put", "asset_register", "-").returncode == 0
    assert server.json("artifact", "list")["artifacts"][0]["size"] == len(CSV)
