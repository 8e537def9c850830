"""A figure with a name and a caption, as files and inside a page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from mdl.results.styles import render
from mdl.whole_files import write_bytes

_PIXELS_PER_INCH = 96  # of CSS


@dataclass(frozen=True)
class Picture:
    """name: of its files, without an ending. caption: also said where it cannot be seen."""

    name: str
    caption: str
    figure: Figure

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Ending -> content."""
        return {kind: render(self.figure, kind) for kind in ("png", "svg")}

    @property
    def width(self) -> int:
        """On a page, px."""
        return round(_PIXELS_PER_INCH * self.figure.get_figwidth())

    @property
    def data_uri(self) -> str:
        """What an <img> shows without a file beside it."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.files["svg"]).decode()

    def write(self, folder: Path) -> list[Path]:
        """Writes <name>.png and <name>.svg, each whole or not at all."""
        written = []
        for kind, content in self.files.items():
            file = folder / f"{self.name}.{kind}"
            write_bytes(file, content)
            written.append(file)
        return written
