"""The pure decision: facts in, a list of actions out."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.reconcile import FetchArtifact, Replace, Running, Start, Stop, UpdateParams, reconcile
from edge_agent.target import Target

ONE, TWO = Target("d1", 1), Target("d2", 2)


def test_nothing_to_do() -> None:
    assert reconcile({}, {}, {}, set()) == []
    assert reconcile({"p": ONE}, {"p": {"x": 1}}, {"p": Running("d1", {"x": 1})}, {"d1"}) == []


def test_a_new_pipeline_is_fetched_then_started() -> None:
    assert reconcile({"p": replace(ONE, lacks="d1")}, {}, {}, set()) == [FetchArtifact("p", "d1")]
    assert reconcile({"p": ONE}, {"p": {"x": 1}}, {}, {"d1"}) == [Start("p", "d1", {"x": 1})]


def test_absence_means_stop_and_stops_come_first() -> None:
    running = {"b": Running("d1", {}), "c": Running("d1", {})}
    assert reconcile({"a": ONE}, {"a": {}}, running, {"d1"}) == [Stop("b"), Stop("c"), Start("a", "d1", {})]


def test_another_version_replaces_only_when_its_bytes_are_here() -> None:
    running = {"p": Running("d1", {})}
    assert reconcile({"p": replace(TWO, lacks="d2")}, {}, running, {"d1"}) == [FetchArtifact("p", "d2")]
    assert reconcile({"p": TWO}, {"p": {}}, running, {"d1", "d2"}) == [Replace("p", "d2", {})]


def test_other_parameters_are_given_to_the_running_one() -> None:
    assert reconcile({"p": ONE}, {"p": {"x": 2}}, {"p": Running("d1", {"x": 1})}, {"d1"}) == [UpdateParams("p", {"x": 2})]


def test_what_cannot_be_folded_is_left_as_it_is() -> None:
    assert reconcile({"p": TWO}, {}, {"p": Running("d1", {})}, {"d2"}) == []


def test_other_labels_replace_the_runner_by_the_same_version() -> None:
    running = {"p": Running("d1", {}, {"site": "lyon"})}
    assert reconcile({"p": ONE}, {"p": {}}, running, {"d1"}, {"site": "lyon"}) == []
    assert reconcile({"p": ONE}, {"p": {}}, running, {"d1"}, {"site": "oslo"}) == [Replace("p", "d1", {})]
