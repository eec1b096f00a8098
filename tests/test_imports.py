"""The direction of dependency, asserted on the syntax tree: contract <- engine <- planes; pure files stay pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE = [
    *sorted(p for p in (ROOT / "pipelines").rglob("*.py")),
    *(ROOT / "edge_agent" / name for name in ("gate.py", "provisions.py", "reconcile.py", "target.py")),
    *(
        ROOT / "control_plane" / name
        for name in ("assign.py", "rollout.py", "deployment_file.py", "silence.py", "incident_stats.py")
    ),
]
IMPURE = frozenset(
    {
        *("asyncio", "threading", "multiprocessing", "subprocess", "signal", "select", "selectors"),
        *("socket", "ssl", "http", "urllib", "httpx", "nats", "sqlite3", "sqlalchemy"),
        *("os", "pathlib", "shutil", "tempfile", "glob", "io", "logging", "structlog"),
        *("time", "random", "secrets", "uuid"),
    }
)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or within a function; not those for type checking only."""
    skipped: set[ast.AST] = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            skipped.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("pipelines/contract", ("pipelines.engine", "edge_agent", "control_plane")),
        ("pipelines/engine", ("edge_agent", "control_plane")),
        ("edge_agent", ("control_plane",)),
        ("control_plane", ("edge_agent",)),
    ],
)
def test_imports_go_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(package)
        for name in imports(path)
        if name.startswith(forbidden)
    ]
    assert not wrong


@pytest.mark.parametrize("path", PURE, ids=lambda p: str(p.relative_to(ROOT)))
def test_pure_files_import_no_io_task_clock_or_randomness(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in IMPURE]


def test_automerge_has_one_importer() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("pipelines", "edge_agent", "control_plane")
        for path in files(package)
        if any(name.split(".")[0] == "automerge" for name in imports(path))
    }
    assert found == {"pipelines/contract/document.py"}
