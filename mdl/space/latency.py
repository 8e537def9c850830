"""How long each block of a space takes on a device: a file that `mdl.profile` writes.

A path's latency is the sum of its blocks', and what all paths have in common. Users can bring a
file from a device of their own: it is JSON, a line per layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from mdl.errors import UserError
from mdl.space.architecture import dumps, first_difference
from mdl.space.search_space import Block, Path, SearchSpace

FORMAT = 1


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one image.

    runtime: 'executorch', 'onnx', 'eager-cpu', 'eager-gpu', or another of the user's.
    image_size: side of the image, px. fixed: stem, head convolution and what a call takes.
    per_class: of the head, per class. blocks: of each layer, in its order, each block's.
    source: machine, threads, versions, and how well it predicted whole paths.
    """

    space: SearchSpace
    runtime: str
    image_size: int
    fixed: float
    per_class: float
    blocks: tuple[Mapping[Block, float], ...]
    source: Mapping[str, Any] = field(default_factory=dict)

    def path_milliseconds(self, path: Path, classes: int) -> float:
        """What one image takes on a path, its head included."""
        blocks = sum(of[block] for of, block in zip(self.blocks, path, strict=True))
        return self.fixed + self.per_class * classes + blocks

    def check_fits(
        self, file: object, space: SearchSpace, image_sizes: Mapping[str, int], runtime: str | None
    ) -> None:
        """Raises UserError where the table is of another space, image size or runtime."""
        if (difference := first_difference(self.space.table(), space.table())) is not None:
            where, own, other = difference
            raise UserError(
                f"{file} is of another space: its space.{where} is {own}, the recipe's is {other}. "
                "Measure this one: python -m mdl.profile RECIPE --out TABLE"
            )
        if runtime is not None and runtime != self.runtime:
            raise UserError(
                f"{file} was measured with {self.runtime}; search.latency.runtime is {runtime}. "
                f"Measure again with --runtime {runtime}, or set search.latency.runtime=null."
            )
        for domain, size in image_sizes.items():
            if size != self.image_size:
                raise UserError(
                    f"{file} was measured with images of {self.image_size} px; those of '{domain}' "
                    f"have {size}. Measure again with data.image_size={size}."
                )

    def dumps(self) -> str:
        """The text of its file."""
        content = {
            "format": FORMAT,
            "space_fingerprint": self.space.fingerprint,
            "runtime": self.runtime,
            "image_size": self.image_size,
            "source": dict(self.source),
            "milliseconds": {
                "fixed": self.fixed,
                "per_class": self.per_class,
                "layers": {
                    layer.name: {str(block): round(ms, 6) for block, ms in of.items()}
                    for layer, of in zip(self.space.layers, self.blocks, strict=True)
                },
            },
            "space": self.space.table(),
        }
        return dumps(content)

    @classmethod
    def read(cls, file: FilePath) -> LatencyTable:
        """Raises UserError where the file is missing, unreadable, or lacks a block of its space."""
        if not file.is_file():
            raise UserError(
                f"No latency table at {file}. Measure one: python -m mdl.profile RECIPE --out TABLE"
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UserError(
                    f"{file} has format {content['format']}; this version of mdl reads {FORMAT}. "
                    "Measure again: python -m mdl.profile"
                )
            space, ms = SearchSpace.from_table(content["space"]), content["milliseconds"]
            blocks = tuple(
                {block: float(ms["layers"][layer.name][str(block)]) for block in layer.blocks}
                for layer in space.layers
            )
            fixed, per_class = float(ms["fixed"]), float(ms["per_class"])
            for number in (of for layer in blocks for of in layer.values()):
                if not 0 <= number < math.inf:
                    raise ValueError(f"a block of {number} milliseconds")
            if not math.isfinite(fixed + per_class):
                raise ValueError("fixed or per_class is no number")
            return cls(
                space,
                content["runtime"],
                content["image_size"],
                fixed,
                per_class,
                blocks,
                content.get("source", {}),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{file} is not a latency table: {type(error).__name__}: {error}. Expected the "
                "file that python -m mdl.profile writes, with every block of every layer."
            ) from error
