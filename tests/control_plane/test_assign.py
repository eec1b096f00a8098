from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from control_plane.assign import Deployment, Member, Pace, Plans, Rule, Target, assign, base_of, changed_pipelines, newly_offered
from control_plane.selector import Selector, parse_selector
from pipelines.contract.folds import effective_params
from pipelines.contract.node_state import Manifest, Note

NODE = Member("n1", "pi1", {"site": "lyon"})
EVERYWHERE = Deployment("press", (Target(Selector(), 1, "sha256:1", {"limit": 80}),))


def rule(number: int, value: float, select: str = "all", **more: bool) -> Rule:
    return Rule(number, "press", "limit", value, parse_selector(select), "ana", "why not", **more)


def issued(member: Member, *rules: Rule, deployment: Deployment = EVERYWHERE) -> Member:
    return replace(member, manifest=assign(member, Plans((deployment,), rules), term=1))


def limit(member: Member) -> float:
    assert member.manifest
    return member.manifest.assignments["press"].params["limit"].value  # type: ignore[return-value]  # numbers here


def test_generation_rises_only_when_the_content_changed() -> None:
    first = issued(NODE)
    assert first.manifest and first.manifest.generation == 1
    assert issued(first).manifest is first.manifest
    second = issued(first, rule(1, 90))
    assert second.manifest and second.manifest.generation == 2


def test_the_first_target_that_matches_wins_and_absence_means_remove() -> None:
    one, two = (Target(parse_selector(s), n, f"sha256:{n}") for s, n in (("site=lyon", 2), ("all", 1)))
    assert assign(NODE, Plans((Deployment("press", (one, two)),)), term=1).assignments["press"].number == 2
    assert assign(NODE, Plans((Deployment("press", (two, one)),)), term=1).assignments["press"].number == 1
    gone = assign(issued(NODE), Plans(), term=1)
    assert gone.assignments == {} and gone.generation == 2


def test_rules_reach_nodes_that_join_later_and_the_later_rule_wins() -> None:
    rules = (rule(3, 70, "site=lyon"), rule(2, 90))
    assert limit(issued(NODE, *rules)) == 70
    assert limit(issued(replace(NODE, labels={"site": "paris"}), *rules)) == 90


def test_a_setting_keeps_the_generation_that_first_carried_it() -> None:
    """An on-site note that has seen a force is not beaten by it again when something else changes (I5)."""
    forced = issued(issued(NODE), rule(1, 90, force=True))
    assert forced.manifest
    seen = forced.manifest.generation
    note = Note("n1", 1, "param", "press", {"name": "limit", "value": 60}, after=seen)
    later = issued(replace(forced, labels={"site": "paris"}), rule(1, 90, force=True))
    assert later.manifest and later.manifest.generation == seen + 1
    assignment = later.manifest.assignments["press"]
    assert assignment.params["limit"].generation == seen
    assert effective_params({"limit": 85}, assignment, [note], node="n1", pipeline="press")["limit"].value == 60
    unseen = replace(note, after=seen - 1)
    assert effective_params({"limit": 85}, assignment, [unseen], node="n1", pipeline="press")["limit"].value == 90


def test_forcing_the_same_value_again_beats_the_notes_made_since() -> None:
    first = issued(NODE, rule(1, 90, force=True))
    again = issued(first, rule(2, 90, force=True))
    assert first.manifest and again.manifest
    assert again.manifest.assignments["press"].params["limit"].generation == first.manifest.generation + 1


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["all", "site=lyon", "site=paris"])), max_size=6))
def test_assignment_is_a_fixed_point_and_survives_its_own_bytes(steps: list[tuple[int, str]]) -> None:
    member = NODE
    for number, (value, select) in enumerate(steps):
        member = issued(member, rule(number, value, select))
        assert member.manifest
        reread = replace(member, manifest=Manifest.from_bytes(member.manifest.to_bytes()))
        assert issued(reread, rule(number, value, select)).manifest == member.manifest


def test_changes_are_told_in_words() -> None:
    before, after = issued(NODE).manifest, issued(issued(NODE), rule(1, 90)).manifest
    assert before and after
    assert changed_pipelines(None, before) == {"press": "starts version 1"}
    assert changed_pipelines(before, after) == {"press": "limit: 80 -> 90"}
    assert changed_pipelines(after, replace(after, assignments={})) == {"press": "removed"}


def target(select: str, number: int, rollout: int = 0, **params: float) -> Target:
    return Target(parse_selector(select), number, f"sha256:{number}", params, rollout=rollout)


def test_who_is_not_admitted_keeps_what_it_had_and_its_rules() -> None:
    old = issued(NODE, rule(1, 90))
    new = Plans((Deployment("press", (target("all", 2, 7, limit=60),)),), (rule(1, 90),), paces={7: Pace()})
    assert assign(old, new, term=1) is old.manifest, "nothing changes for it"
    night = assign(old, replace(new, rules=(rule(2, 70),)), term=1)
    assert (night.assignments["press"].number, night.assignments["press"].params["limit"].value) == (1, 70)
    assert assign(NODE, new, term=1).assignments == {}, "who had nothing gets nothing"
    before = {"n1": base_of(target("all", 1, limit=80))}
    kept = assign(NODE, replace(new, rules=(), paces={7: Pace(frozenset(), before)}), term=1)
    assert (kept.assignments["press"].number, kept.assignments["press"].params["limit"].value) == (1, 80)
    taken = assign(old, replace(new, paces={7: Pace(frozenset({"n1"}))}), term=1)
    assert taken.assignments["press"].number == 2 and taken.generation == 2


def test_a_lift_reaches_the_node_as_a_new_generation() -> None:
    first = issued(NODE)
    lifted = assign(first, Plans((EVERYWHERE,), lifts={("press", "n1", "sha256:1"): 2}), term=1)
    assert first.manifest and lifted.generation == first.manifest.generation + 1
    assert lifted.assignments["press"].lift == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(2, 5), st.booleans()), max_size=8))
def test_a_node_never_runs_a_version_it_was_not_admitted_to(steps: list[tuple[bool, int, bool]]) -> None:
    member = issued(NODE)
    for rollout, (is_admitted, number, has_row) in enumerate(steps, 1):
        had = member.manifest.assignments["press"] if member.manifest else None
        before = {} if is_admitted or not has_row else {"n1": base_of(target("all", had.number))} if had else {}
        pace = Pace(frozenset({"n1"} if is_admitted else ()), before)
        wanted = assign(member, Plans((Deployment("press", (target("all", number, rollout),)),), paces={rollout: pace}), term=1)
        assert had and wanted.assignments["press"].number == (number if is_admitted else had.number)
        assert (wanted.generation != member.manifest.generation) == (wanted != member.manifest)  # type: ignore[union-attr]
        plans = Plans((Deployment("press", (target("all", number, rollout),)),), paces={rollout: pace})
        is_news = had.digest != f"sha256:{number}" or bool(had.params)
        assert newly_offered(member, plans, wanted) == ([rollout] if is_admitted and is_news else [])
        member = replace(member, manifest=wanted)
