"""Rollouts on a store, with nodes that exchange: a bad version to fifty of which twenty are away, and what comes after."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_rig import WHO, Edge, Plant

from control_plane.parameters import params
from control_plane.ran import ran
from pipelines.contract.errors import Refused

STEPS = {"steps": [1, "10%", "100%"], "soak": "10m"}


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    made = Plant(tmp_path)
    made.apply(4)
    return made


def fifty(plant: Plant) -> tuple[list[Edge], list[Edge]]:
    """Thirty in contact and twenty that are not; all run version 3."""
    edges = plant.join(*(f"pi{i:02}" for i in range(50)))
    plant.deploy("press@3")
    plant.hear(edges)
    plant.tick(minutes=60)
    here, away = edges[:30], edges[30:]
    plant.hear(here)
    return here, away


def groups(result: dict) -> dict[str, list[str]]:
    (undone,) = result["undone"]
    return {group: [entry["name"] for entry in entries] for group, entries in undone["groups"].items()}


def test_a_bad_version_to_fifty_of_which_twenty_are_away(plant: Plant) -> None:
    here, away = fifty(plant)
    for edge in [*here, *away]:
        edge.bad_for = {4}
    plan = plant.deploy("press@4", **STEPS)
    assert len(plan["nodes"]) == 1, "one canary"
    plant.run(here)
    shown = plant.status()
    assert (shown["state"], shown["step"]) == ("held", "1 of 3") and "temp_c is text" in shown["why"]
    assert Counter(word.partition(" since")[0] for word in plant.words().values()) == {"banned": 1, "waiting": 29, "unknown": 20}
    assert Counter(edge.runs() for edge in here) == {3: 30}, "the canary took the last good one by itself"
    found = groups(plant.commands.undo("press", WHO, plant.contact).result)
    assert [len(found[g]) for g in ("back", "may_run", "never", "failed")] == [0, 0, 49, 1]
    plant.run([*here, *away], rounds=3)
    assert Counter(edge.runs() for edge in plant.edges.values()) == {3: 50}
    assert {a.number for edge in away for a in edge.manifest.assignments.values()} == {3}, "never offered to who was away"


def test_undo_names_four_groups(plant: Plant) -> None:
    here, away = fifty(plant)
    plant.deploy("press@4", failures=1, **STEPS)
    plant.run(here, rounds=1)
    canary = next(e for e in here if e.runs() == 4)
    canary.hear()
    plant.run(here, rounds=3)
    assert plant.status()["state"] == "done"
    silent = [e for e in here if e is not canary][:3]
    unaware = away[0]
    away[1].bad_for = {4}
    away[1].hear()
    plant.run([away[1]], rounds=2)
    heard = [e for e in here if e not in silent]
    plant.hear(heard)
    plant.now += 30 * 60_000_000
    plant.hear([*heard, away[1]])
    result = plant.commands.undo("press", WHO, plant.contact).result
    found = groups(result)
    assert found["failed"] == [away[1].name]
    assert sorted(found["may_run"]) == sorted(e.name for e in silent)
    assert unaware.name in found["never"] and len(found["never"]) == 19
    assert len(found["back"]) == 27
    assert any(line.startswith("3 may still run version 4, silent:") for line in result["summary"])
    assert "as soon as they have asked" in str(result["summary"])
    plant.hear(heard)
    assert {e.runs() for e in heard} == {3}
    lines = plant.status()["lines"]
    assert "27 back on what they had:" in lines and "as soon as" not in str(lines)


def test_returning_nodes_pass_the_same_gate(plant: Plant) -> None:
    here, away = fifty(plant)
    plant.deploy("press@4", **STEPS)
    plant.run(here, rounds=8)
    assert plant.status()["state"] == "done", "who is away blocks nothing"
    assert {e.runs() for e in here} == {4} and {e.runs() for e in away} == {3}
    for edge in away:
        edge.hear()
        assert edge.runs() == 3, "not before it is its turn"
    plant.hear(here)
    plant.tick()
    admitted = [e for e in away if e.name in {n["name"] for n in plant.status()["nodes"] if n["admitted"]}]
    assert len(admitted) == 5, "ten percent of fifty at a time"
    admitted[0].bad_for = {4}
    plant.run([*here, *away], rounds=4)
    assert plant.status()["state"] == "held"
    assert Counter(e.runs() for e in away) == {4: 4, 3: 16}


def test_retry_and_resume_after_a_failure(plant: Plant) -> None:
    here, _ = fifty(plant)
    for edge in here:
        edge.bad_for = {4}
    plant.deploy("press@4", **STEPS)
    plant.run(here, rounds=3)
    (failed,) = [name for name, word in plant.words().items() if word == "banned"]
    for edge in here:
        edge.bad_for = set()
    plant.run(here, rounds=3)
    assert plant.status()["state"] == "held", "a ban stays until somebody lifts it"
    assert plant.commands.steer("retry", "press", WHO, plant.contact, node=failed).result["touched"] == [failed]
    plant.run(here, rounds=10)
    assert plant.status()["state"] == "done" and {e.runs() for e in here} == {4}
    with pytest.raises(Refused, match="no node has failed"):
        plant.commands.steer("retry", "press", WHO, plant.contact)


def test_resume_goes_on_in_spite_of_what_failed_until_the_next_failure(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@4", **STEPS)
    canary = next(e for e in here if e.name in {n["name"] for n in plant.status()["nodes"] if n["admitted"]})
    canary.bad_for = {4}
    plant.run(here, rounds=2)
    plant.commands.steer("resume", "press", WHO, plant.contact)
    plant.run(here, rounds=10)
    assert plant.status()["state"] == "done"
    assert Counter(e.runs() for e in here) == {4: 29, 3: 1}


def test_pause_admits_nobody_and_resume_goes_on(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@4", **STEPS)
    plant.commands.steer("pause", "press", WHO, plant.contact)
    plant.run(here, rounds=5)
    assert plant.status()["state"] == "paused" and Counter(e.runs() for e in here) == {3: 29, 4: 1}
    with pytest.raises(Refused, match="no canaries under way"):
        plant.commands.steer("pause", "press", WHO, plant.contact)
    plant.commands.steer("resume", "press", WHO, plant.contact)
    plant.run(here, rounds=8)
    assert plant.status()["state"] == "done"


def test_a_new_deploy_supersedes_and_who_waited_keeps_what_it_had(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@2", **STEPS)
    plant.run(here, rounds=1)
    assert Counter(e.runs() for e in here) == {3: 29, 2: 1}
    plant.deploy("press@4", **STEPS)
    plant.hear(here)
    assert Counter(e.runs() for e in here) == {3: 26, 2: 3, 4: 1}, "each its own"
    plant.run(here, rounds=10)
    assert {e.runs() for e in here} == {4}
    with plant.store.write() as db:
        states = list(db.exec_driver_sql("select state from rollouts order by id").scalars())
    assert states == ["superseded", "superseded", "done"]


def test_i7_a_restart_and_a_second_replica_neither_lose_nor_repeat_a_step(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@4", **STEPS)
    for _ in range(10):
        plant.now += 11 * 60_000_000
        plant.hear(here)
        plant.restart()
        plant.tick()
        before = Counter(e.manifest.generation for e in here)
        plant.restart()
        assert plant.tick() == [], "the other replica finds nothing left to do"
        assert Counter(e.manifest.generation for e in here) == before
    assert plant.status()["state"] == "done"
    with sqlite3.connect(plant.directory / "control.db") as db:
        assert db.execute("select count(*), count(distinct node) from rollout_nodes where admitted and rollout=2").fetchone() == (
            30,
            30,
        )


def test_undo_has_nothing_to_go_back_to(plant: Plant) -> None:
    plant.join("pi")
    with pytest.raises(Refused, match="nothing to go back to"):
        plant.commands.undo("press", WHO, plant.contact)
    plant.deploy("press@3")
    with pytest.raises(Refused, match="nothing to go back to") as refused:
        plant.commands.undo("press", WHO, plant.contact)
    assert "--remove" in refused.value.hint
    assert plant.status()["state"] == "running", "nothing was changed"


def test_undo_goes_one_further_back_each_time(plant: Plant) -> None:
    (pi,) = plant.join("pi")
    for number in (1, 2, 3):
        plant.deploy(f"press@{number}")
        pi.hear()
    for number in (2, 1):
        plant.commands.undo("press", WHO, plant.contact)
        pi.hear()
        assert pi.runs() == number
    with pytest.raises(Refused):
        plant.commands.undo("press", WHO, plant.contact)
    plant.deploy("press@4")
    plant.commands.undo("press", WHO, plant.contact)
    pi.hear()
    assert pi.runs() == 1


def test_undo_of_a_rollout_over_an_unfinished_one_brings_that_back_paused(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@2", **STEPS)
    plant.run(here, rounds=1)
    (first,) = [e for e in here if e.runs() == 2]
    plant.deploy("press@4")
    plant.hear(here)
    assert {e.runs() for e in here} == {4}
    plant.commands.undo("press", WHO, plant.contact)
    plant.hear(here)
    assert first.runs() == 2 and Counter(e.runs() for e in here) == {3: 27, 2: 3}
    shown = next(r for r in _all(plant) if r["version"] == 2)
    assert shown["state"] == "paused" and "undone" in shown["why"]


def test_who_joins_or_is_labelled_during_a_rollout_waits_for_its_turn(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@4", **STEPS)
    (late,) = plant.join("late")
    late.hear()
    assert late.manifest.assignments == {}, "it had nothing: nothing it gets"
    plant.run([*here, late], rounds=10)
    assert plant.status()["state"] == "done" and late.runs() == 4


def test_a_rule_reaches_who_waits(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@4", **STEPS)
    plant.commands.set_param("press", {"limit_c": "70"}, "all", WHO, plant.contact, force=False, lock=False)
    plant.hear(here)
    assert {(e.manifest.assignments["press"].params["limit_c"].value) for e in here} == {70.0}
    assert sum(e.runs() == 3 for e in here) == 29


def test_a_rule_with_an_end_ends_by_our_clock(plant: Plant) -> None:
    (pi,) = plant.join("pi")
    plant.deploy("press@3")
    hour = 3_600_000_000
    plant.commands.set_param("press", {"limit_c": "70"}, "all", WHO, plant.contact, force=False, lock=False, for_us=8 * hour)
    pi.hear()
    assert pi.manifest.assignments["press"].params["limit_c"].value == 70.0
    assert plant.tick(minutes=7 * 60) == []
    assert plant.tick(minutes=61) == [pi.id]
    pi.hear()
    assert pi.manifest.assignments["press"].params == {}
    with plant.store.write() as db:
        said = list(db.exec_driver_sql("select detail from audit where action = 'unset'").scalars())
    assert said == ["limit_c=70.0 on all: its time is over"]


def _all(plant: Plant) -> list[dict]:
    from control_plane import rollouts

    with plant.store.write() as db:
        return rollouts.status(db, "press", plant.contact)


@settings(max_examples=15)
@given(st.data())
def test_whatever_happens_undo_reaches_a_fixed_point(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random deploys, contacts, failures and restarts; then undo, everybody returns: all run what the deployment says (I6)."""
    plant = Plant(tmp_path_factory.mktemp("plant"))
    plant.apply(4)
    edges = plant.join(*(f"pi{i}" for i in range(6)))
    plant.deploy("press@1")
    plant.hear(edges)
    deploys = 0
    for _ in range(data.draw(st.integers(1, 8))):
        act = data.draw(st.sampled_from(["deploy", "hear", "hear", "tick", "bad", "restart"]))
        some = data.draw(st.lists(st.sampled_from(edges), unique_by=lambda e: e.id))
        if act == "deploy":
            number = data.draw(st.integers(2, 4))
            plant.deploy(f"press@{number}", **data.draw(st.sampled_from([STEPS, {}, {"steps": [2], "soak": "1m"}])))
            deploys += 1
        elif act == "hear":
            plant.now += 60_000_000
            for edge in some:
                edge.hear(obey=data.draw(st.booleans()))
        elif act == "bad":
            for edge in some:
                edge.bad_for |= {2, 3, 4}
        elif act == "restart":
            plant.restart()
        plant.tick(minutes=data.draw(st.integers(0, 12)))
    for _ in range(deploys):
        try:
            plant.commands.undo("press", WHO, plant.contact)
        except Refused:
            break
    plant.run(edges, rounds=3)
    assert {e.runs() for e in edges} == {1}
    before = [e.manifest for e in edges]
    plant.run(edges, rounds=2)
    assert [e.manifest for e in edges] == before


def test_a_deploy_in_steps_says_before_how_it_will_go(plant: Plant) -> None:
    fifty(plant)
    summary = plant.deploy("press@4", **STEPS)["summary"]
    assert summary[-1] == "all: in steps of 1, 10%, 100% of 30 in contact, each for 10m; 20 out of contact take it as they return"


def test_history_says_which_version_ran_where_from_when_to_when(plant: Plant) -> None:
    pi, other = plant.join("pi", "other")
    plant.deploy("press@1")
    pi.hear()
    other.hear()
    other.bad_for = {2}
    plant.deploy("press@2")
    pi.hear()
    other.hear()
    with plant.store.write() as db:
        told = ran(db, "press")
        assert [run["node"] for run in ran(db, "press", "pi")["runs"]] == ["pi", "pi"]
        with pytest.raises(Refused, match="no node"):
            ran(db, "press", "nobody")
    runs = {(run["node"], run["version"]): run for run in told["runs"]}
    assert set(runs) == {("pi", 1), ("pi", 2), ("other", 1)}
    assert runs["pi", 1]["to"] and not runs["pi", 2]["to"] and not runs["other", 1]["to"]
    assert (runs["pi", 2]["by"], runs["pi", 2]["gate"], runs["pi", 2]["select"]) == ("ana", "passed", "all")
    assert [(f["node"], f["version"], f["banned"]) for f in told["failures"]] == [("other", 2, True)]
    assert [d["action"] for d in told["deployments"]] == ["deploy", "deploy"] and len(told["versions"]) == 4


def test_params_show_rules_and_every_entry_that_lost(plant: Plant) -> None:
    (pi,) = plant.join("pi", labels='{"line": "4"}')
    plant.commands.deploy("press@1", "all", {"limit_c": "60"}, WHO, plant.contact)

    def set_(value: int, select: str) -> None:
        plant.commands.set_param("press", {"limit_c": str(value)}, select, WHO, plant.contact, force=False, lock=False)

    set_(70, "all")
    set_(75, "line=4")
    pi.hear()
    pi.note("param", "press", name="limit_c", value=80.0)
    pi.hear()
    (late,) = plant.join("late", labels='{"line": "4"}')
    late.hear()
    with plant.store.write() as db:
        found = params(db, "press")
    assert [(r["value"], r["select"], r["nodes"]) for r in found["rules"]] == [(70.0, "all", 2), (75.0, "line=4", 2)]
    rows = {node["name"]: next(p for p in node["params"] if p["name"] == "limit_c") for node in found["nodes"]}
    lost = [("rule:2", 75.0), ("rule:1", 70.0), ("deployment", 60.0), ("default", 85)]
    assert (rows["pi"]["value"], rows["pi"]["origin"], rows["pi"]["by"]) == (80.0, "on-site", "m.durand")
    assert [(entry["origin"], entry["value"]) for entry in rows["pi"]["beats"]] == lost
    assert (rows["late"]["value"], [e["origin"] for e in rows["late"]["beats"]]) == (75.0, ["rule:1", "deployment", "default"])


def test_who_joined_since_goes_back_to_what_is_there_after_an_undo(plant: Plant) -> None:
    here, away = fifty(plant)
    plant.deploy("press@2", **STEPS)
    plant.run(here, rounds=8)
    plant.deploy("press@4")
    (late,) = plant.join("late")
    plant.hear([late, away[0], *here])
    assert {late.runs(), away[0].runs(), here[0].runs()} == {4}
    plant.commands.undo("press", WHO, plant.contact)
    plant.hear([late, away[0], *here])
    assert (late.runs(), away[0].runs(), here[0].runs()) == (2, 3, 2), "what each had, and who came since what is there"


def test_offered_to_all_at_once_but_never_sent_is_never_had(plant: Plant) -> None:
    here, away = fifty(plant)
    plant.deploy("press@4")
    plant.hear(here)
    away[0].hear(obey=False)
    plant.tick(minutes=5)
    plant.hear(here)
    found = groups(plant.commands.undo("press", WHO, plant.contact).result)
    assert [len(found[g]) for g in ("back", "may_run", "never", "failed")] == [30, 1, 19, 0]
    assert found["may_run"] == [away[0].name]


def test_a_failure_counts_also_when_the_node_no_longer_tells_of_it(plant: Plant) -> None:
    here, _ = fifty(plant)
    plant.deploy("press@4", **STEPS)
    (canary,) = [e for e in here if e.name in {n["name"] for n in plant.status()["nodes"] if n["admitted"]}]
    canary.bad_for = {4}
    plant.run(here, rounds=1)
    now = canary.document.reported()["press"]
    canary.document.report("press", replace(now, bans=()))
    canary._exchange()
    plant.tick()
    assert plant.words()[canary.name] == "banned" and plant.status()["state"] == "held"
