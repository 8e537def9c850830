"""The MobileNetV3-like search space, as data.

A space is a table of stages; every layer of a stage offers the same blocks. Source of the
kinds of choices: the MobileNetV3-like space of TuNAS (Bender et al., CVPR 2020).
Differs from TuNAS: widths are fixed per stage, and a layer's choices are one joint decision
(kernel x expansion x squeeze-excite) instead of three.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from mdl.errors import UserError

ACTIVATIONS = ("relu", "hardswish")


@dataclass(frozen=True, order=True)
class Block:
    """A kind of operation: an inverted residual, or zero (the layer is skipped)."""

    kernel: int
    expansion: int
    squeeze_excite: bool

    def __str__(self) -> str:
        if self == ZERO:
            return "zero"
        return f"k{self.kernel}_e{self.expansion}" + ("_se" if self.squeeze_excite else "")


ZERO = Block(0, 0, False)

Path = tuple[Block, ...]
"""One choice per layer, for one domain."""


@dataclass(frozen=True)
class Stage:
    """Layers of one resolution: a row of the space's table."""

    width: int
    depth: int
    stride: int
    activation: str
    skippable: int | None = None  # how many of the last layers offer zero; None: all that can


@dataclass(frozen=True)
class Layer:
    """A position in the network, with the choices that it offers."""

    index: int
    name: str  # "<stage>.<layer in the stage>", counted from 1
    in_width: int
    width: int
    stride: int
    activation: str
    blocks: tuple[Block, ...]  # zero last, where the layer can be skipped

    @property
    def can_skip(self) -> bool:
        return ZERO in self.blocks


@dataclass(frozen=True)
class SearchSpace:
    """Stem, searchable stages, head convolution; pooling and a head per domain follow."""

    stem_width: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head_width: int
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (3, 6)
    squeeze_excite: tuple[bool, ...] = (False, True)

    def __post_init__(self) -> None:
        _require_positive("stem_width", self.stem_width)
        _require_positive("head_width", self.head_width)
        _require_stride("stem_stride", self.stem_stride)
        if not self.stages:
            raise UserError("space.stages is empty; expected at least one stage.")
        if not (self.kernels and self.expansions and self.squeeze_excite):
            raise UserError(
                "space.kernels, space.expansions and space.squeeze_excite each need at least "
                "one value."
            )
        for kernel in self.kernels:
            if kernel < 1 or kernel % 2 == 0:
                raise UserError(f"space.kernels holds {kernel}; expected odd positive numbers.")
        for expansion in self.expansions:
            _require_positive("expansions", expansion)
        for name, values in (
            ("kernels", self.kernels),
            ("expansions", self.expansions),
            ("squeeze_excite", self.squeeze_excite),
        ):
            if len(set(values)) != len(values):
                raise UserError(f"space.{name} holds a value twice: {list(values)}.")
        in_width = self.stem_width
        for number, stage in enumerate(self.stages, 1):
            _check_stage(number, stage, in_width)
            in_width = stage.width

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every block but zero, in the order in which the layers offer them."""
        return tuple(
            Block(kernel, expansion, squeeze_excite)
            for kernel in self.kernels
            for expansion in self.expansions
            for squeeze_excite in self.squeeze_excite
        )

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        layers: list[Layer] = []
        in_width = self.stem_width
        for number, stage in enumerate(self.stages, 1):
            first_skippable = stage.depth - _num_skippable(stage, in_width)
            for depth in range(stage.depth):
                zero = (ZERO,) if depth >= first_skippable else ()
                layers.append(
                    Layer(
                        index=len(layers),
                        name=f"{number}.{depth + 1}",
                        in_width=in_width,
                        width=stage.width,
                        stride=stage.stride if depth == 0 else 1,
                        activation=stage.activation,
                        blocks=self.blocks + zero,
                    )
                )
                in_width = stage.width
        return tuple(layers)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this space, equal for equal tables."""
        text = json.dumps(self.table(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def table(self) -> dict[str, Any]:
        """The space as plain data; `from_table` reads it back."""
        table = asdict(self)
        table["stages"] = [dict(row) for row in table["stages"]]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in table.items()}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> SearchSpace:
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in table.items()
        }
        values["stages"] = tuple(Stage(**row) for row in table["stages"])
        return cls(**values)

    def widened(self, factor: float) -> SearchSpace:
        """This space with all widths multiplied by one factor; it has the same paths.

        Widths become whole numbers, at least 1: a factor below 1 may make two of them equal.
        """

        def widen(width: int) -> int:
            return max(math.floor(width * factor + 0.5), 1)

        return replace(
            self,
            stem_width=widen(self.stem_width),
            stages=tuple(replace(stage, width=widen(stage.width)) for stage in self.stages),
            head_width=widen(self.head_width),
        )

    def random_path(self, generator: random.Random) -> Path:
        """A path drawn uniformly: each layer's choices are equally likely."""
        return tuple(generator.choice(layer.blocks) for layer in self.layers)

    def uniform_path(self, block: Block) -> Path:
        """The path that takes the same block at every layer."""
        return tuple(block for _ in self.layers)

    @property
    def reference_block(self) -> Block:
        """MobileNetV2's block as far as the space has it: smallest kernel, widest, no SE."""
        return Block(min(self.kernels), max(self.expansions), min(self.squeeze_excite))

    @property
    def largest_block(self) -> Block:
        """The block that contains every other."""
        return Block(max(self.kernels), max(self.expansions), max(self.squeeze_excite))

    def check_path(self, path: Path, owner: str) -> None:
        """Raises UserError with the first layer at which `path` does not fit."""
        if len(path) != len(self.layers):
            raise UserError(
                f"The path of '{owner}' has {len(path)} layers; the space has {len(self.layers)}."
            )
        for layer, block in zip(self.layers, path, strict=True):
            if block not in layer.blocks:
                offered = ", ".join(str(offer) for offer in layer.blocks)
                raise UserError(
                    f"The path of '{owner}' takes '{block}' at layer {layer.name}; "
                    f"that layer offers {offered}."
                )


def _num_skippable(stage: Stage, in_width: int) -> int:
    """How many of a stage's last layers offer zero."""
    keeps_shape = stage.stride == 1 and in_width == stage.width
    possible = stage.depth if keeps_shape else stage.depth - 1
    return possible if stage.skippable is None else stage.skippable


def _check_stage(number: int, stage: Stage, in_width: int) -> None:
    where = f"stages[{number - 1}]"
    _require_positive(f"{where}.width", stage.width)
    _require_positive(f"{where}.depth", stage.depth)
    _require_stride(f"{where}.stride", stage.stride)
    if stage.activation not in ACTIVATIONS:
        raise UserError(
            f"space.{where}.activation is '{stage.activation}'; "
            f"expected one of {', '.join(ACTIVATIONS)}."
        )
    possible = _num_skippable(Stage(stage.width, stage.depth, stage.stride, "relu"), in_width)
    if stage.skippable is not None and not 0 <= stage.skippable <= possible:
        raise UserError(
            f"space.{where}.skippable is {stage.skippable}; expected 0 to {possible}: "
            "zero is possible only where a layer keeps the shape (stride 1 and equal widths)."
        )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"space.{name} is {value}; expected a positive number.")


def _require_stride(name: str, value: int) -> None:
    if value not in (1, 2):
        raise UserError(f"space.{name} is {value}; expected 1 or 2.")
