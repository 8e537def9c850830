"""Tables on a terminal."""

import io

from rich.console import Console

from mdl.results.table import Table


def test_brackets_of_names_and_settings_are_shown_as_they_are() -> None:
    """Rich would take them for markup."""
    words = ["MPNAS [ours]", "data.domains=[birds,cars]", "[/old]"]
    out = io.StringIO()
    Table(words[0], words, [words]).print(Console(file=out, width=160))
    for word in words:
        assert out.getvalue().count(word) >= 2
