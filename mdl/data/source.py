"""What can be packed: images from wherever they come, by split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class SourceImage(Protocol):
    """An encoded image that can be packed, from any process."""

    @property
    def label(self) -> int:
        """Index of its class; -1 where none is known."""

    @property
    def id(self) -> int:
        """The publisher's own number; -1 where there is none."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def version(self) -> str:
        """Changes when its content does: tells whether what was packed of it still holds."""

    def load(self) -> bytes:
        """The file's bytes. Raises OSError where it cannot be read."""


@dataclass(frozen=True)
class DomainSource:
    """A domain that can be packed. flip: whether a horizontal flip keeps the label."""

    name: str
    classes: Sequence[str]
    images: Mapping[str, Sequence[SourceImage]]  # by split
    flip: bool
