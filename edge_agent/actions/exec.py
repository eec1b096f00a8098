"""`exec`: start a program that the node's policy lists. No shell, no inherited environment, ten seconds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from edge_agent.actions.outcome import Done, Failed, Outcome, Refusal, Retry
from edge_agent.parent_death import die_with_parent
from edge_agent.policy import Policy

TIMEOUT_S = 10.0
_VARIABLE_BYTES_MAX = 4096  # the kernel bounds the environment; the whole context is on stdin


async def perform(action: Mapping[str, Any], policy: Policy) -> Outcome:
    program = str(action.get("config", {}).get("program", ""))
    if reason := policy.refuses_program(program):
        return Refusal(reason)
    return await _run(program, action)


async def _run(program: str, action: Mapping[str, Any]) -> Outcome:
    config = action.get("config", {})
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *(_clean(str(word)) for word in config.get("args", [])),
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            env=_environment(action),
            cwd="/",
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except (OSError, ValueError) as error:
        return Failed(f"{program}: {getattr(error, 'strerror', None) or error}")
    return await _finish(process, json.dumps(action.get("context", {}), default=str).encode())


async def _finish(process: Process, context: bytes) -> Outcome:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await process.communicate(context)
    except TimeoutError:
        return Failed(f"not done after {TIMEOUT_S:g} s; killed")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind goes with it
        await process.wait()
    return Done("exit status 0") if process.returncode == 0 else Retry(f"exit status {process.returncode}")


def _environment(action: Mapping[str, Any]) -> dict[str, str]:
    context = action.get("context", {})
    values = {
        "INCIDENT": action.get("incident"),
        "TRANSITION": action.get("transition"),
        "MESSAGE": context.get("message"),
        "SEVERITY": context.get("severity"),
        "GROUP": context.get("group"),
    }
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items() if value is not None}
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", **{f"TIDEWIRE_{name}": _clean(text) for name, text in texts.items()}}


def _clean(text: str) -> str:
    """What a program can be given: no NUL, no lone surrogates, not too long."""
    return text.replace("\0", " ").encode(errors="replace")[:_VARIABLE_BYTES_MAX].decode(errors="ignore")
