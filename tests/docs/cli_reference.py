"""docs/cli.md, written from the commands themselves: `python -m tests.docs.cli_reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

import control_plane.cli
import edge_agent.cli

PROGRAMS = {"tidewire": control_plane.cli.app, "tidewire-agent": edge_agent.cli.app}
HEAD = """# Command line

`tidewire` is for those who write pipelines and for the control plane; `tidewire-agent` runs on a node.

| to | commands |
|---|---|
| write and test a pipeline, on any machine | `tidewire new`, `catalog`, `validate`, `explain`, `test`, `fmt`, `schema` |
| run one pipeline here, alone | `tidewire-agent run FILE` |
| run a control plane, and let nodes in | `tidewire up`, `join-token create`; on the node `tidewire-agent join`, `run` |
| put pipelines on nodes | `tidewire apply`, `deploy`, `set`, `unset`; which nodes: `nodes label` |
| see what happens | `tidewire nodes`, `pipelines`, `why`, `incidents`, `query`, `changes`; on the node `tidewire-agent status` |
| ask nodes what they still hold | `tidewire query --fleet`, `tap`, `logs`, `requests` |
| see whether a node can run it | on the node `tidewire-agent validate FILE` |
| see where every row went | `tidewire audit`, `refused`; what a node still holds: `tidewire-agent buffer` |
| see what was rejected | `tidewire query` of the table `quarantine`; on the node `tidewire-agent quarantine` |
| answer an alarm | `tidewire incidents ack`, `shelve`, `stats`; on the node `tidewire-agent ack`, `reset`, `shelve`, `comment` |
| be called | `tidewire notify add`, `test` |
| change something on site | `tidewire-agent set`, `pin`, `pause`, `label`, and back; `secret` |
| go on after a loss | a card: `tidewire nodes replace`; a control plane from a backup: `tidewire recover` |
| take in more nodes | `tidewire ingest` beside `tidewire up` |

The first two rows need no control plane, and no more than the agent's dependencies. The others find the control plane by its
directory on the machine where it runs, or by `TIDEWIRE_URL` and `TIDEWIRE_TOKEN`. Below, `[X]` may be left out, and `X...` may be
several.

Exit status: 0 done; 1 what was asked failed or is invalid; 2 wrong usage; 3 control plane or node out of reach.
Errors are lines on stderr: what, and how to fix it. `NO_COLOR` and `FORCE_COLOR` are heeded; `TIDEWIRE_DEBUG=1` shows
the traceback of a defect. Every command has `--help`.

## Editors

The JSON Schema of pipeline files is [pipeline.schema.json](pipeline.schema.json), that of cases files
[cases.schema.json](cases.schema.json); `tidewire schema` prints that of the installed version. With the YAML language
server (VS Code, Neovim, Emacs) either begin a file with

```yaml fragment
# yaml-language-server: $schema=./pipeline.schema.json
tidewire: 1
```

or, for VS Code, put into `.vscode/settings.json` (the `!` needs a recent version of the server):

```json
{"yaml.schemas": {"./pipeline.schema.json": ["pipelines/*.yaml", "!*.cases.yaml"], "./cases.schema.json": "*.cases.yaml"}}
```

Format on save: `tidewire fmt -` reads a file on stdin and writes its canonical form.
Before a commit: `tidewire fmt --check . && tidewire validate . && tidewire test`.
"""


def reference() -> str:
    """The whole page."""
    lines = [HEAD.rstrip()]
    for program, app in PROGRAMS.items():
        lines += ["", f"## {program}"]
        group: Any = typer.main.get_command(app)
        lines += _options(group)
        for words, command in commands(group, program):
            lines += ["", f"### {' '.join([words, *_arguments(command)])}", "", _sentence(command)]
            lines += _options(command)
    return "\n".join(lines) + "\n"


def commands(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield f"{words} {name}", command
            yield from commands(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


def parameters(command: Any) -> tuple[list[Any], list[Any]]:
    """(arguments, options) but for `--help`."""
    params = [param for param in command.params if "--help" not in param.opts]
    arguments = [param for param in params if param.param_type_name == "argument"]
    return arguments, [param for param in params if param.param_type_name == "option"]


def _arguments(command: Any) -> list[str]:
    words = [(param.metavar or param.name.upper(), param.required) for param in parameters(command)[0]]
    return [word if required else f"[{word}]" for word, required in words]


def _sentence(command: Any) -> str:
    return " ".join((command.help or "").split())


def _options(command: Any) -> list[str]:
    arguments, options = parameters(command)
    rows = [f"| `{_escaped(param.metavar or param.name.upper())}` | {_about(param)} |" for param in arguments if param.help]
    rows += [f"| `{', '.join([*param.opts, *param.secondary_opts])}{_value(param)}` | {_about(param)} |" for param in options]
    return ["", "| argument, option | meaning |", "|---|---|", *rows] if rows else []


def _value(param: Any) -> str:
    if getattr(param, "is_flag", False):
        return ""
    return f" {_escaped(param.metavar or param.name.upper())}"


def _about(param: Any) -> str:
    text = _escaped(" ".join((param.help or "").split()))
    default = "" if callable(param.default) else str(param.default)
    shown = f" Default {default}." if default not in ("None", "False", "", "[]", "()") and not param.required else ""
    needed = " Required." if param.required and param.param_type_name == "option" else ""
    return (text + shown + needed).strip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
