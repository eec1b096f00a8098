"""The life of one alarm: a pure state machine. What it sees of its rows comes in as `Moment`s, what people do as calls.

Two axes, active or cleared and unacknowledged or acknowledged, and flags. The table of all states and inputs stands in
docs/language/triggers.md; tests/engine/test_alarm.py walks through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

RAISED, RAISED_AGAIN, CLEARED, LATCHED = "raised", "raised_again", "cleared", "latched"
ACKNOWLEDGED, RESET, RETIRED = "acknowledged", "reset", "retired"
REMINDED, ESCALATED = "reminded", "escalated"
SUPPRESSED, UNSUPPRESSED, UNRELIABLE, RELIABLE = "suppressed", "unsuppressed", "unreliable", "reliable"
SHELVED, UNSHELVED = "shelved", "unshelved"
TRANSITIONS = (
    *(RAISED, RAISED_AGAIN, CLEARED, LATCHED, ACKNOWLEDGED, RESET, RETIRED),
    *(REMINDED, ESCALATED, SUPPRESSED, UNSUPPRESSED, SHELVED, UNSHELVED, UNRELIABLE, RELIABLE),
)
FOREVER_US = 1 << 62
LATE = "late"  # why an incident is suppressed whose rows were older than `max_age`
BY_ITSELF, BY_TRIGGER = "incident", "trigger"  # what somebody shelved: this incident, or all of its trigger


class Alarm(NamedTuple):
    """One alarm of one group, as it is stored. An incident is open while `incident` is set."""

    active: bool = False
    since_us: int | None = None  # event time since when what would change `active` holds; None: it does not hold
    since_arrival_us: int | None = None  # the same in node time; None: after a silence, which does not count
    occurrence: int = 0  # incidents so far: an incident's id needs no clock and no chance
    incident: str = ""
    acknowledged: bool = False
    latched: bool = False  # back to normal, and held active until it is reset
    suppressed: str = ""  # why, or ""
    sounded: bool = False  # on_raise was performed, since the last raise
    unreliable: bool = False
    chattering: bool = False
    raises: tuple[int, ...] = ()  # event times of the last ones, for the flapping limit
    raised_arrival_us: int = 0
    reminded_arrival_us: int = 0
    escalated: int = 0  # how many steps of the escalation are behind it
    steps: int = 0  # transitions of the open incident
    only_us: int | None = None  # event time since when only_when is true
    only_arrival_us: int | None = None
    late: bool = False  # the last row of what is pending or open was older than max_age
    sounded_before: bool = False  # on_raise was performed for an earlier raise of the incident, or before it was shelved
    shelved: tuple[str, ...] = ()  # BY_ITSELF, BY_TRIGGER: as long as any is left nothing is performed but the end of what was

    @property
    def was_told(self) -> bool:
        return self.sounded or self.sounded_before

    @property
    def is_open(self) -> bool:
        return self.incident != ""

    @property
    def is_beyond(self) -> bool:
        """Active, without an incident: there were too many."""
        return self.active and self.incident == ""

    @property
    def state(self) -> Literal["active", "cleared", "closed"]:
        return "active" if self.active else "cleared" if self.incident else "closed"

    @property
    def flags(self) -> tuple[str, ...]:
        names = ("latched", "suppressed", "shelved", "unreliable", "chattering")
        return tuple(name for name in names if getattr(self, name))


NORMAL = Alarm()


@dataclass(frozen=True)
class Rules:
    """What a trigger's author decided about its incidents; microseconds."""

    latch: bool = False
    ack: Literal["required", "optional", "none"] = "optional"
    on_no_data: Literal["hold", "clear", "raise"] = "hold"
    has_only_when: bool = False
    only_delay_us: int = 0
    remind_us: int | None = None
    escalate: tuple[tuple[int, bool], ...] = ()  # (after, not when acknowledged), by after
    has_max_age: bool = False
    flapping_raises: int = 0  # 0: no limit
    flapping_us: int = 0


class Moment(NamedTuple):
    """What is known at one row, or at a timer. Conditions are true, false or unknown."""

    when: bool | None
    clear: bool | None
    t_us: int  # event time
    arrival_us: int  # node time
    only: bool | None = True
    for_us: int = 0
    clear_for_us: int = 0
    alone: bool = False  # no other row in sight: what was before is not known to have held until now
    late: bool | None = False  # older than max_age; None at a timer: as the last row was
    suppressor: str = ""
    unreliable: bool = False
    shelved: bool = False  # its trigger is


class Step(NamedTuple):
    """A transition. `after` is the alarm after it; `sounds`: whether its actions are performed."""

    what: str
    incident: str
    reason: str
    by: str
    sounds: bool
    after: Alarm


Name = Callable[[int], str]  # the id of the n-th incident


class _Change:
    def __init__(self, alarm: Alarm) -> None:
        self.alarm = alarm
        self.steps: list[Step] = []

    def set(self, **changes: Any) -> None:
        self.alarm = self.alarm._replace(**changes)

    def step(self, what: str, *, sounds: bool = False, reason: str = "", by: str = "", **changes: Any) -> None:
        incident = changes.get("incident") or self.alarm.incident
        self.set(steps=self.alarm.steps + 1, **changes)
        self.steps.append(Step(what, incident, reason, by, sounds, self.alarm))
        if not self.alarm.incident:
            self.set(steps=0)

    @property
    def result(self) -> tuple[Alarm, list[Step]]:
        if self.alarm.late and not self.alarm.is_open and self.alarm.since_us is None:
            self.set(late=False)
        return self.alarm, self.steps


_CLOSED: dict[str, Any] = {
    name: getattr(NORMAL, name)
    for name in Alarm._fields
    if name not in ("occurrence", "raises", "steps", "only_us", "only_arrival_us")
}


def see(rules: Rules, alarm: Alarm, moment: Moment, name: Name) -> tuple[Alarm, Sequence[Step]]:
    """The alarm after one row or timer, and its transitions."""
    change = _Change(alarm)
    moment = moment._replace(late=alarm.late) if moment.late is None else moment
    holds, back = _judge(change, rules, moment)
    _decide(change, rules, moment, holds=holds, back=back, name=name)
    if change.alarm.late != moment.late:
        change.set(late=bool(moment.late))
    return change.result


def see_silence(rules: Rules, alarm: Alarm, moment: Moment, name: Name) -> tuple[Alarm, Sequence[Step]]:
    """The same when there is no data: the conditions are unknown, `on_no_data` decides."""
    change = _Change(alarm)
    if rules.on_no_data == "hold":
        if alarm.since_us is not None and alarm.since_arrival_us is not None:
            change.set(since_arrival_us=None)
        if alarm.only_us is not None and alarm.only_arrival_us is not None:
            change.set(only_arrival_us=None)
    else:
        raises = rules.on_no_data == "raise"
        _decide(change, rules, moment, holds=raises, back=not raises, name=name)
    return change.result


def suppress(rules: Rules, alarm: Alarm, suppressor: str, arrival_us: int) -> tuple[Alarm, Sequence[Step]]:
    """A trigger that suppresses this one was raised, or ("") none of them is active any more."""
    change = _Change(alarm)
    _follow_suppressor(change, suppressor, arrival_us)
    return change.result


def shelve(alarm: Alarm, what: str, by: str, reason: str) -> tuple[Alarm, Sequence[Step]]:
    """Somebody shelves the open incident, or (`what`) its trigger: who was called is told that it need not be looked at now."""
    change = _Change(alarm)
    if alarm.is_open and what not in alarm.shelved:
        shelved = (*alarm.shelved, what)
        if alarm.shelved:
            change.set(shelved=shelved)
        else:
            told: dict[str, Any] = {"sounded": False, "sounded_before": alarm.was_told}
            sounds = alarm.was_told and not alarm.acknowledged
            change.step(SHELVED, sounds=sounds, by=by, reason=reason, shelved=shelved, **told)
    return change.result


def unshelve(alarm: Alarm, what: str, by: str, reason: str, arrival_us: int) -> tuple[Alarm, Sequence[Step]]:
    """What is active and unacknowledged annunciates again, as if it were raised now."""
    change = _Change(alarm)
    if what in alarm.shelved:
        left = tuple(one for one in alarm.shelved if one != what)
        needs_somebody = alarm.active and not alarm.acknowledged
        sounds = needs_somebody and not alarm.suppressed
        times: dict[str, Any] = {"raised_arrival_us": arrival_us, "escalated": 0 if sounds else alarm.escalated}
        if left:
            change.set(shelved=left)
        else:
            sounded = sounds or (not needs_somebody and alarm.was_told)
            change.step(UNSHELVED, sounds=sounds, by=by, reason=reason, shelved=(), sounded=sounded, **times)
    return change.result


def acknowledge(rules: Rules, alarm: Alarm, by: str, reason: str) -> tuple[Alarm, Sequence[Step]]:
    """Without effect on what is not open, is acknowledged already, or has no acknowledgement."""
    change = _Change(alarm)
    if alarm.is_open and not alarm.acknowledged and rules.ack != "none":
        closed = {} if alarm.active else _CLOSED
        change.step(ACKNOWLEDGED, sounds=alarm.was_told, by=by, reason=reason, **{"acknowledged": True, **closed})
    return change.result


def reset(rules: Rules, alarm: Alarm, by: str, reason: str) -> tuple[Alarm, Sequence[Step]]:
    """Let go of what a latch holds. Without effect while the cause is there."""
    change = _Change(alarm)
    if alarm.latched:
        change.step(RESET, sounds=alarm.was_told, by=by, reason=reason, **_CLOSED)
    return change.result


def retire(alarm: Alarm, reason: str) -> tuple[Alarm, Sequence[Step]]:
    """Close what is open: trigger or group are no more."""
    change = _Change(alarm)
    if alarm.is_open:
        change.step(RETIRED, sounds=alarm.was_told, reason=reason, **_CLOSED)
    return change.result


def pass_time(rules: Rules, alarm: Alarm, arrival_us: int) -> tuple[Alarm, Sequence[Step]]:
    """Reminders and escalation, in node time since the raise. After a long pause: one reminder, not many."""
    change = _Change(alarm)
    if not alarm.is_open or not alarm.sounded or alarm.suppressed:
        return change.result
    for after_us, unless_acknowledged in rules.escalate[alarm.escalated :]:
        if arrival_us - alarm.raised_arrival_us < after_us:
            break
        if unless_acknowledged and alarm.acknowledged:
            change.set(escalated=change.alarm.escalated + 1)
        else:
            change.step(ESCALATED, sounds=True, escalated=change.alarm.escalated + 1)
    reminded_us = max(alarm.raised_arrival_us, alarm.reminded_arrival_us)
    if rules.remind_us and not alarm.acknowledged and arrival_us - reminded_us >= rules.remind_us:
        change.step(REMINDED, sounds=True, reminded_arrival_us=arrival_us)
    return change.result


def pause(alarm: Alarm) -> Alarm:
    """The alarm after a pause of the runner: what held before it is not known to have held through it in node time."""
    if alarm.since_us is not None:
        alarm = alarm._replace(since_arrival_us=None)
    return alarm._replace(only_arrival_us=None) if alarm.only_us is not None else alarm


def forget_time_line(alarm: Alarm) -> Alarm:
    """Event time started again: durations across it mean nothing."""
    late = alarm.late and alarm.is_open
    return alarm._replace(since_us=None, since_arrival_us=None, only_us=None, only_arrival_us=None, raises=(), late=late)


def is_steady(rules: Rules, alarm: Alarm) -> bool:
    """Whether seeing the same again changes nothing, whatever the time."""
    waits = rules.has_only_when and alarm.only_us is not None and rules.only_delay_us > 0
    may_sound = alarm.suppressed != "" and rules.has_max_age and _is_untold(alarm)  # it matters whether the last row was late
    return alarm.since_us is None and not waits and not may_sound and alarm.suppressed != LATE and not alarm.is_beyond


def quiet_until(rules: Rules, alarm: Alarm, m: Moment) -> int:
    """Event time before which seeing the same again at the same node time changes nothing, but for a row that is alone: what
    holds has to hold on for its `for` or `clear_for`. It is `m` that the alarm saw last."""
    if is_steady(rules, alarm):
        return FOREVER_US
    is_plain = not (rules.has_only_when or rules.has_max_age or alarm.suppressed or alarm.is_beyond)
    if not is_plain or alarm.since_us is None or alarm.since_arrival_us is None:
        return -FOREVER_US
    return alarm.since_us + _delay_us(rules, alarm, m)


# -- what decides


def _judge(change: _Change, rules: Rules, m: Moment) -> tuple[bool, bool]:
    """(the condition holds, it is back to normal). Not both, perhaps neither."""
    if not rules.has_only_when:
        holds = m.when is True
        return holds, not holds and m.clear is True
    if m.only is not True:
        if change.alarm.only_us is not None:
            change.set(only_us=None, only_arrival_us=None)
        return False, m.only is False or (m.when is not True and m.clear is True)
    if change.alarm.only_us is None:
        change.set(only_us=m.t_us, only_arrival_us=m.arrival_us)
    elif change.alarm.only_arrival_us is None:
        change.set(only_arrival_us=m.arrival_us)
    passed = _held(change.alarm.only_us, change.alarm.only_arrival_us, m, rules.only_delay_us)
    return m.when is True and passed, m.when is not True and m.clear is True


def _decide(change: _Change, rules: Rules, m: Moment, *, holds: bool, back: bool, name: Name) -> None:
    alarm = change.alarm
    if alarm.is_open and alarm.unreliable != m.unreliable:
        change.step(UNRELIABLE if m.unreliable else RELIABLE, unreliable=m.unreliable)
    _follow_suppressor(change, m.suppressor, m.arrival_us)
    if alarm.active and alarm.latched:
        if holds:
            change.set(latched=False)
        return
    if holds and alarm.active and change.alarm.suppressed == LATE and not m.late:
        _unsuppress(change, m.arrival_us)
    changes_it = back if alarm.active else holds
    if not changes_it:
        if alarm.since_us is not None:
            change.set(since_us=None, since_arrival_us=None)
        return
    if alarm.since_us is None or m.alone:
        change.set(since_us=m.t_us, since_arrival_us=m.arrival_us)
    elif alarm.since_arrival_us is None:
        change.set(since_arrival_us=m.arrival_us)
    if not _held(change.alarm.since_us, change.alarm.since_arrival_us, m, _delay_us(rules, alarm, m)):
        return
    if alarm.active:
        _return_to_normal(change, rules)
    else:
        _raise(change, rules, m, name)


def _delay_us(rules: Rules, alarm: Alarm, m: Moment) -> int:
    """How long what holds must hold until it counts."""
    if not alarm.active:
        return m.for_us
    return max(m.clear_for_us, rules.flapping_us) if alarm.chattering else m.clear_for_us


def _held(since_us: int | None, since_arrival_us: int | None, m: Moment, for_us: int) -> bool:
    """Through `for_us` of event time or of node time, whichever comes first."""
    if since_us is not None and m.t_us - since_us >= for_us:
        return True
    return since_arrival_us is not None and m.arrival_us - since_arrival_us >= for_us


def _raise(change: _Change, rules: Rules, m: Moment, name: Name) -> None:
    alarm = change.alarm
    raises = alarm.raises
    if rules.flapping_raises:
        raises = (*(at for at in raises if m.t_us - at < rules.flapping_us), m.t_us)[-rules.flapping_raises :]
    chattering = rules.flapping_raises > 0 and len(raises) >= rules.flapping_raises
    suppressed = m.suppressor or (LATE if m.late else "")
    shelved = alarm.shelved or ((BY_TRIGGER,) if m.shelved else ())
    sounds = not suppressed and not shelved
    again = alarm.is_open
    changes: dict[str, Any] = {
        "active": True,
        "since_us": None,
        "since_arrival_us": None,
        "occurrence": alarm.occurrence + (not again),
        "incident": alarm.incident or name(alarm.occurrence + 1),
        "acknowledged": False,
        "suppressed": suppressed,
        "sounded": sounds,
        "sounded_before": alarm.was_told,
        "shelved": shelved,
        "unreliable": m.unreliable,
        "chattering": chattering,
        "raises": raises,
        "raised_arrival_us": m.arrival_us,
        "escalated": 0,
    }
    reason = _why(suppressed, is_shelved=bool(shelved), chattering=chattering)
    change.step(RAISED_AGAIN if again else RAISED, sounds=sounds, reason=reason, **changes)


def _why(suppressed: str, *, is_shelved: bool, chattering: bool) -> str:
    if suppressed:
        return "older than max_age" if suppressed == LATE else f"suppressed by {suppressed}"
    return "shelved" if is_shelved else "chattering" if chattering else ""


def _return_to_normal(change: _Change, rules: Rules) -> None:
    alarm = change.alarm
    if rules.latch:
        change.step(LATCHED, latched=True, since_us=None, since_arrival_us=None)
        return
    raises = () if alarm.chattering else alarm.raises
    waits = rules.ack == "required" and alarm.was_told and not alarm.acknowledged
    cleared: dict[str, Any] = {"active": False, "since_us": None, "since_arrival_us": None, "chattering": False}
    change.step(CLEARED, sounds=alarm.was_told, **{**(cleared if waits else _CLOSED), "raises": raises})


def _follow_suppressor(change: _Change, suppressor: str, arrival_us: int) -> None:
    alarm = change.alarm
    if not alarm.active or alarm.suppressed == suppressor:
        return
    if not suppressor:
        if alarm.late and _is_untold(alarm):
            change.set(suppressed=LATE)
        elif alarm.suppressed != LATE:
            _unsuppress(change, arrival_us)
    elif alarm.suppressed:
        change.set(suppressed=suppressor)
    else:
        change.step(SUPPRESSED, suppressed=suppressor, reason=f"suppressed by {suppressor}")


def _is_untold(alarm: Alarm) -> bool:
    return not alarm.sounded and not alarm.acknowledged


def _unsuppress(change: _Change, arrival_us: int) -> None:
    """What was not sounded is sounded now, and its times count from here."""
    first = _is_untold(change.alarm) and not change.alarm.shelved
    times: dict[str, Any] = {"sounded": True, "raised_arrival_us": arrival_us} if first else {}
    change.step(UNSUPPRESSED, sounds=first, suppressed="", **times)
