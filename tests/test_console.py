"""How the commands speak."""

import pytest

from mdl import console
from mdl.console import phase_bar


def test_where_there_is_no_terminal_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(100, 1000, 20))
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    with phase_bar("packing", 10) as advance:
        for _ in range(6):
            advance(1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("packing: ")]
    assert [line.split(",")[0] for line in lines] == ["packing: 3 of 10", "packing: 5 of 10"]
