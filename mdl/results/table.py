"""A table of texts, printed, written to a page, or both."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.console import Console
from rich.markup import escape


@dataclass(frozen=True)
class Table:
    """Rows of texts, the first column names.

    note: what a reader has to know of the numbers.
    in_words: whether the other columns hold words, not numbers.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    in_words: bool = False

    @property
    def justify(self) -> list[str]:
        """Of each column."""
        return ["left", *["left" if self.in_words else "right"] * (len(self.columns) - 1)]

    def print(self, console: Console | None = None) -> None:
        # names and settings may hold brackets, which rich would take for markup
        table = rich.table.Table(title=escape(self.title))
        for column, justify in zip(self.columns, self.justify, strict=True):
            first = not table.columns  # names stay whole where the terminal is narrow
            look: dict[str, Any] = {"justify": justify, "no_wrap": first, "overflow": "fold"}
            table.add_column(escape(column), **look)
        for row in self.rows:
            table.add_row(*map(escape, row))
        # into a file or a pipe, no number is broken for want of columns
        width = None if sys.stdout.isatty() else 160
        (console or Console(width=width)).print(table)


def percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.1f}"


def giga(macs: int) -> str:
    """Three digits that count: 0.0123, 1.23, 123."""
    return f"{macs / 1e9:#.3g}".rstrip(".")
