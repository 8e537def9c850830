"""From what whole paths take to what each block of a space adds: the numbers of a latency table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mdl.space.search_space import Block, Layer, Path, SearchSpace

_RIDGE = 3.0  # against a path's relative error; docs/results/device.md

FloatArray = npt.NDArray[np.float64]
Timed = Sequence[tuple[Path, float]]
"""Paths, and what one image took on each, ms, without its classes."""


def changed_paths(space: SearchSpace) -> list[Path]:
    """The path of the reference block, then that path with one block changed.

    By each block of each layer; of layers of one shape, in the same stage, by those of the first.
    """
    reference = space.uniform_path(space.reference_block)
    paths, seen = [reference], set()
    for layer in space.layers:
        if (shape := _shape(layer)) not in seen:
            seen.add(shape)
            before, after = reference[: layer.index], reference[layer.index + 1 :]
            others = (block for block in layer.blocks if block != space.reference_block)
            paths.extend((*before, block, *after) for block in others)
    return paths


def block_times(
    space: SearchSpace, changed: Timed, drawn: Timed
) -> tuple[float, tuple[dict[Block, float], ...]]:
    """What all paths have in common, and what each block of each layer adds, ms.

    changed: those of `changed_paths`. drawn: random paths; without any, a block adds what it
    changed.

    The least squares of (sum(x) - y) / y over all these paths, which took y, and, `_RIDGE` times,
    of (x - t) / mean(y) over the blocks' times x: t are those by `changed` alone, scaled and
    shifted to what the random paths took. In each layer the fastest choice, as a rule skipping it,
    counts as nothing; what it takes is in what all paths have in common.
    """
    reference, whole = changed[0]
    columns = _Columns(space)
    alone = np.zeros(columns.count)
    alone[0] = whole
    for path, ms in changed[1:]:
        layer = next(at for at, block in enumerate(path) if block != reference[at])
        alone[columns.of[layer][path[layer]]] = ms - whole
    if not drawn:
        return columns.table(alone)
    taken = np.array([ms for _, ms in drawn])
    by_table = columns.uses([path for path, _ in drawn]) @ alone
    straight = np.stack([by_table, np.ones_like(taken)], axis=1) / taken[:, None]
    (steeper, shift), *_ = np.linalg.lstsq(straight, 1 - by_table / taken)
    prior = alone * (1 + steeper)
    prior[0] += shift
    both = [*changed, *drawn]
    relative = columns.uses([path for path, _ in both]) / np.array([[ms] for _, ms in both])
    pull = np.eye(columns.count)[1:] * np.sqrt(_RIDGE) / taken.mean()
    sides = [1 - relative @ prior, np.zeros(len(pull))]
    change, *_ = np.linalg.lstsq(np.concatenate([relative, pull]), np.concatenate(sides))
    return columns.table(prior + change)


class _Columns:
    """The unknowns of a table: what all paths have in common, then each shape's blocks."""

    def __init__(self, space: SearchSpace) -> None:
        self.of: list[dict[Block, int]] = []
        self.count = 1
        known: dict[object, dict[Block, int]] = {}
        for layer in space.layers:
            if (shape := _shape(layer)) not in known:
                known[shape] = {block: self.count + at for at, block in enumerate(layer.blocks)}
                self.count += len(layer.blocks)
            self.of.append(known[shape])

    def uses(self, paths: Sequence[Path]) -> FloatArray:
        """How often each path [row] has each unknown [column]."""
        uses = np.zeros((len(paths), self.count))
        uses[:, 0] = 1
        for row, path in zip(uses, paths, strict=True):
            for of, block in zip(self.of, path, strict=True):
                row[of[block]] += 1
        return uses

    def table(self, times: FloatArray) -> tuple[float, tuple[dict[Block, float], ...]]:
        """Unknowns -> what is in common, and the times of each layer's blocks, the least 0."""
        fixed, blocks = float(times[0]), []
        for of in self.of:
            least = min(times[column] for column in of.values())
            fixed += float(least)
            blocks.append({block: float(times[column] - least) for block, column in of.items()})
        return fixed, tuple(blocks)


def _shape(layer: Layer) -> tuple[object, ...]:
    # the stage tells the size of the features
    stage = layer.name.partition(".")[0]
    return stage, layer.in_width, layer.width, layer.stride, layer.blocks
