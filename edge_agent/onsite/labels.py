"""`label`: labels that people put on the node itself. Their names start with `local.`, so none can pass for a central one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edge_agent.agent import Agent
from pipelines.contract.errors import Refused
from pipelines.contract.folds import local_labels

PREFIX = "local."
LABELS_MAX = 32
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,56}")
_VALUE = re.compile(r"[A-Za-z0-9_.:/@+-]{1,255}")


async def label(agent: Agent, words: Mapping[str, str | None], *, by: str, reason: str, dry_run: bool) -> list[str]:
    """Set labels, or with None take them off. Pipelines see them as `local.NAME`, and start anew."""
    now = local_labels(agent.record.document.notes(), node=agent.identity.node)
    wanted = {PREFIX + name.removeprefix(PREFIX): value for name, value in words.items()}
    lines = [_explain(name, value, now) for name, value in wanted.items()]
    after = {name for name, value in {**now, **wanted}.items() if value is not None}
    if not wanted or len(after) > LABELS_MAX:
        hint = "one is taken off by: tidewire-agent label NAME-"
        raise Refused(f"a node has 1 to {LABELS_MAX} labels of its own", op="label", hint=hint)
    if not dry_run:
        for name, value in wanted.items():
            body: dict[str, object] = {"name": name, **({} if value is None else {"value": value})}
            await agent.record.add_note("unlabel" if value is None else "label", "", body, by=by, reason=reason)
    return lines


def _explain(name: str, value: str | None, now: Mapping[str, str]) -> str:
    if not _NAME.fullmatch(name.removeprefix(PREFIX)) or (value is not None and not _VALUE.fullmatch(value)):
        hint = "write name=value; letters, digits and . _ - (in values also : / @ +), the name first a letter"
        raise Refused(f"{name}={value or ''} is not a label", op="label", hint=hint)
    if value is None and name not in now:
        raise Refused(f"there is no label {name}", op="label", hint=f"labels set here: {', '.join(sorted(now)) or 'none'}")
    return f"label {name}: {now.get(name, 'not set')} -> {'not set' if value is None else value}; pipelines start anew"
