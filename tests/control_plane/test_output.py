"""What is printed steers no terminal."""

from __future__ import annotations

import pytest

from control_plane import output


def test_text_of_nodes_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\u202ec\nd\x9b31m\u2028"
    output.print_table(("X",), [[hostile]])
    output.print_lines([["note", hostile]])
    printed = capsys.readouterr().out.replace("\n", "")
    assert printed.isprintable() and "[2Jb c d" in printed
    assert output.plain("Größe 5 °C 漢") == "Größe 5 °C 漢"
