"""Deployments as files: what they may say, what is refused and where, what `apply` and `diff` make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_rig import WHO, Plant
from server_process import PRESS, ServerProcess

from control_plane.commands import Writer
from control_plane.deployment_file import is_deployment, load_deployment
from pipelines.contract.errors import Refused, SpecError

TEXT = """\
deployment: press
targets:
  - select: line=4
    version: 2
    params: {limit_c: 70}
  - select: site=lyon,!spare
    version: 1
rollout: {steps: [1, 10%, 100%], soak: 10m, failures: 2, gate: {rejected: 1%, crashes: 0, memory: 200MiB, slower: 3}}
"""


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    made = Plant(tmp_path)
    made.apply(2)
    return made


def labelled(plant: Plant) -> None:
    plant.join("l4", labels='{"site": "lyon", "line": "4"}')
    plant.join("l5", labels='{"site": "lyon", "line": "5"}')
    plant.join("spare", labels='{"site": "lyon", "spare": "yes"}')


def apply(plant: Plant, *texts: str, who: Writer = WHO, allow_empty: bool = False) -> dict:
    files = [(f"{i}.yaml", text) for i, text in enumerate(texts)]
    return plant.commands.apply(files, who, plant.contact, allow_empty=allow_empty).result


def versions(plant: Plant) -> dict[str, int]:
    for edge in plant.edges.values():
        edge.hear()
    return {edge.name: edge.runs() for edge in plant.edges.values()}


def test_a_file_says_targets_in_order_and_how_a_change_goes_out() -> None:
    made = load_deployment(TEXT)
    assert is_deployment(TEXT) and not is_deployment(PRESS)
    assert [(str(t.selector), t.version, t.params) for t in made.targets] == [
        ("line=4", 2, {"limit_c": 70}),
        ("!spare,site=lyon", 1, {}),
    ]
    pacing = made.rollout.pacing
    assert ([str(s) for s in pacing.steps], pacing.soak_us, pacing.failures) == (["1", "10%", "100%"], 600_000_000, 2)
    gate = pacing.gate
    assert (gate.soak_s, gate.rejected, gate.crashes, gate.memory_bytes, gate.slower) == (600, 0.01, 0, 200 * 2**20, 3)
    plain = load_deployment("deployment: press\ntargets: [{select: all}]\n")
    assert plain.targets[0].version == "newest" and plain.rollout.pacing.steps == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("select: line=4", "select: line=", 3, "write it like site=lyon"),
        ("version: 2", "version: 0", 4, "greater than or equal to 1"),
        ("version: 2", "verson: 2", 4, 'did you mean "version"?'),
        ("[1, 10%, 100%]", "[5, 3]", 8, "rising"),
        ("rejected: 1%", "rejected: 1", 8, "percent"),
        ("soak: 10m", "soak: 10", 8, "not a duration"),
        ("site=lyon,!spare", "line=4", 6, "selects the same nodes"),
        ("slower: 3", "slower: 3, slow: 1", 8, "unknown key"),
        ("deployment: press", "deployment: Press", 1, "lower-case"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, line: int, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_deployment(TEXT.replace(old, new), "d.yaml")
    (first, *_) = refused.value.problems
    assert first.line == line and said in " ".join(refused.value.lines())


def test_apply_takes_pipelines_and_deployments_and_does_all_or_nothing(plant: Plant) -> None:
    labelled(plant)
    third = PRESS.replace("Press temperatures", "Press temperatures 3")
    text = TEXT.replace("version: 2", "version: 3").replace("steps: [1, 10%, 100%], ", "")
    for wrong, said in (
        (text.replace("version: 3", "version: 9"), "4:5: targets[0].version: press has no version 9"),
        (text.replace("limit_c: 70", "limit_c: 900"), "5:5: targets[0].params: 900"),
        (text.replace("limit_c: 70", "limit: 70"), "there is no parameter 'limit'"),
        (text.replace("deployment: press", "deployment: pres"), "1:1: deployment: there is no pipeline 'pres'"),
    ):
        with pytest.raises(SpecError) as refused:
            apply(plant, third, wrong)
        assert said in str(refused.value)
    rehearsed = apply(plant, third, text, who=Writer(dry_run=True))
    assert rehearsed["versions"][0]["number"] == 3 and len(rehearsed["nodes"]) == 2
    assert versions(plant) == {"l4": 0, "l5": 0, "spare": 0}, "nothing was changed by any of it"
    done = apply(plant, third, text)
    assert done["deployments"][0]["changed"] == ["line=4", "!spare,site=lyon"]
    assert versions(plant) == {"l4": 3, "l5": 1, "spare": 0}
    assert plant.edges["l4"].document.reported()["press"].params["limit_c"] == 70.0
    again = apply(plant, third, text)
    assert (again["diff"], again["nodes"], again["deployments"][0]["changed"]) == ([], [], [])


def test_only_targets_that_change_begin_a_rollout_and_who_is_gone_goes(plant: Plant) -> None:
    labelled(plant)
    text = TEXT.replace("steps: [1, 10%, 100%], ", "")
    apply(plant, text)
    assert versions(plant) == {"l4": 2, "l5": 1, "spare": 0}
    before = plant.edges["l5"].manifest.generation
    done = apply(plant, text.replace("limit_c: 70", "limit_c: 75"))
    assert done["deployments"][0]["changed"] == ["line=4"]
    assert "-      limit_c: 70.0" in done["diff"] and "+      limit_c: 75.0" in done["diff"]
    assert versions(plant)["l4"] == 2 and plant.edges["l5"].manifest.generation == before
    other = text.replace("select: line=4", "select: line=5")
    assert apply(plant, other)["deployments"][0]["removed"] == ["line=4"]
    assert versions(plant) == {"l4": 1, "l5": 2, "spare": 0}
    plant.commands.undo("press", WHO, plant.contact)
    assert versions(plant) == {"l4": 2, "l5": 1, "spare": 0}, "an apply is undone as a whole"


def test_order_alone_moves_nodes_and_undo_moves_them_back(plant: Plant) -> None:
    labelled(plant)
    plain = "deployment: press\ntargets:\n  - {select: line=4, version: 2}\n  - {select: all, version: 1}\n"
    apply(plant, plain)
    assert versions(plant) == {"l4": 2, "l5": 1, "spare": 1}
    swapped = "deployment: press\ntargets:\n  - {select: all, version: 1}\n  - {select: line=4, version: 2}\n"
    assert apply(plant, swapped)["diff"]
    assert versions(plant) == {"l4": 1, "l5": 1, "spare": 1}
    plant.commands.undo("press", WHO, plant.contact)
    assert versions(plant)["l4"] == 2


def test_a_deployment_of_which_no_target_matches_is_refused(plant: Plant) -> None:
    labelled(plant)
    text = "deployment: press\ntargets:\n  - select: site=paris\n"
    with pytest.raises(Refused, match="no node matches site=paris") as refused:
        apply(plant, text)
    assert "site=lyon" in refused.value.hint and "--allow-empty" in refused.value.hint
    assert apply(plant, text, allow_empty=True)["deployments"][0]["matches_nothing"] == ["site=paris"]
    apply(plant, text + "  - select: all\n")
    with pytest.raises(Refused, match="no node matches line=7"):
        plant.commands.deploy("press", "line=7", {}, WHO, plant.contact)
    with pytest.raises(Refused, match="no node matches line=7"):
        plant.commands.set_param("press", {"limit_c": "70"}, "line=7", WHO, plant.contact, force=False, lock=False)


def test_steps_of_the_file_are_taken(plant: Plant) -> None:
    edges = plant.join(*(f"pi{i}" for i in range(10)))
    plant.deploy("press@1")
    plant.hear(edges)
    apply(plant, "deployment: press\ntargets: [{select: all, version: 2}]\nrollout: {steps: [2], soak: 1m}\n")
    plant.hear(edges)
    assert sorted(e.runs() for e in edges) == [1] * 8 + [2] * 2
    plant.run(edges, rounds=4)
    assert {e.runs() for e in edges} == {2}


def test_apply_and_diff_at_the_command_line(server: ServerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "plant"
    folder.mkdir()
    (folder / "press.yaml").write_text(PRESS)
    (folder / "deploy.yaml").write_text("deployment: press\ntargets:\n  - select: all\n    params: {limit_c: 70}\n")
    shown = server.cli("diff", str(folder))
    assert shown.returncode == 1 and "+pipeline: press" in shown.stdout and "+  - select: all" in shown.stdout
    assert server.client.get("/v1/pipelines")["pipelines"] == []
    done = server.cli("apply", str(folder), "--reason", "first")
    assert done.returncode == 0, done.stderr
    assert "press: version 1" in done.stdout and "deployment press: all" in done.stdout and done.stdout.endswith("done\n")
    assert (server.cli("diff", str(folder)).returncode, server.cli("diff", str(folder)).stdout) == (0, "")
    (folder / "deploy.yaml").write_text("deployment: press\ntargets:\n  - select: all\n    version: 7\n")
    wrong = server.cli("apply", str(folder))
    assert wrong.returncode == 1 and f"{folder}/deploy.yaml:4:5: targets[0].version: press has no version 7" in wrong.stderr
    assert server.json("diff", str(folder / "press.yaml"))["diff"] == []
