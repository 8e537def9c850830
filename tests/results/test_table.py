"""Tables on a terminal."""

import io

from rich.console import Console

from mdl.results.page import Page, Section
from mdl.results.table import Table


def test_brackets_of_names_and_settings_are_shown_as_they_are() -> None:
    """Rich would take them for markup."""
    words = ["MPNAS [ours]", "data.domains=[birds,cars]", "[/old]"]
    out = io.StringIO()
    Table(words[0], words, [words]).print(Console(file=out, width=160))
    for word in words:
        assert out.getvalue().count(word) >= 2


def test_a_bar_in_a_cell_of_a_page_ends_no_cell() -> None:
    table = Table("Runs", ["a|b", "c"], [["x|y", "z"]])
    lines = Page("name", "lead", [Section("Runs", tables=[table])], None).render("md").splitlines()
    assert "| a\\|b | c |" in lines
    assert "| x\\|y | z |" in lines
