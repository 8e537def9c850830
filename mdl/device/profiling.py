"""How long the blocks of a space take on a runtime, from whole paths that differ in one block.

A block by itself would be measured with what a runtime does at the ends of a graph: conversions of
memory formats, the call. So whole paths are measured: one of the space's reference block
throughout, and for each other block of each layer that path with the block in its place. Layers
of one shape, in the same stage, are measured once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

import torch

from mdl.device.executorch_file import write_executorch
from mdl.device.executorch_model import ExecutorchModel, use_threads
from mdl.device.metadata import DomainMetadata, Metadata
from mdl.device.onnx_files import write_onnx
from mdl.device.onnx_model import OnnxModel
from mdl.device.plain import FOLDED, NormalisedImage, PlainPath, plain_paths
from mdl.device.stopwatch import milliseconds
from mdl.errors import UserError
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.latency import LatencyTable
from mdl.space.search_space import Layer, Path, SearchSpace

RUNTIMES = ("executorch", "onnx", "eager-cpu", "eager-gpu")
_FEW, _MANY = 2, 202  # classes, by which the head's part is told
_GREY = (0.5, 0.5, 0.5)

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Predicted:
    """A path's latency by the table, and measured, ms."""

    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


def profile(
    space: SearchSpace, image_size: int, runtime: str, folder: FilePath, repeats: int, checked: int
) -> tuple[LatencyTable, list[Predicted]]:
    """Measures a space's blocks, and random paths to check the table by.

    runtime: one of `RUNTIMES`. folder: for the files of a runtime. repeats: times that each path
    is run. checked: number of random paths.
    """
    base = space.uniform_path(space.reference_block)
    paths, classes = {"base": base, "many": base}, {"many": _MANY}
    for layer in _distinct(space):
        for number, block in enumerate(layer.blocks):
            if block != space.reference_block:
                changed = (*base[: layer.index], block, *base[layer.index + 1 :])
                paths[f"l{layer.index}b{number}"] = changed
    generator = random.Random(0)
    drawn = {f"random{number}": space.random_path(generator) for number in range(checked)}
    sizes = {name: classes.get(name, _FEW) for name in (*paths, *drawn)}
    chains = _chains(space, paths | drawn, sizes, image_size)
    took = milliseconds(_calls(chains, image_size, runtime, folder), repeats)
    per_class = max(took["many"] - took["base"], 0.0) / (_MANY - _FEW)
    table = _table(space, took, took["base"] - per_class * _FEW, per_class, runtime, image_size)
    checks = [
        Predicted(table.path_milliseconds(path, _FEW), took[name]) for name, path in drawn.items()
    ]
    return table, checks


def _distinct(space: SearchSpace) -> list[Layer]:
    """The first layer of each shape."""
    seen: dict[object, Layer] = {}
    for layer in space.layers:
        seen.setdefault(_shape(layer), layer)
    return list(seen.values())


def _shape(layer: Layer) -> tuple[object, ...]:
    # the stage tells the size of the features
    stage = layer.name.partition(".")[0]
    return stage, layer.in_width, layer.width, layer.stride, layer.blocks


def _table(
    space: SearchSpace,
    took: Mapping[str, float],
    whole: float,
    per_class: float,
    runtime: str,
    image_size: int,
) -> LatencyTable:
    """whole: of the path of the reference block, without its classes.

    In each layer the fastest choice, as a rule skipping it, counts as nothing; what it takes is in
    what all paths have in common.
    """
    measured_at = {_shape(layer): layer.index for layer in _distinct(space)}
    fixed, blocks = whole, []
    for layer in space.layers:
        index = measured_at[_shape(layer)]
        more = {
            block: took.get(f"l{index}b{number}", took["base"]) - took["base"]
            for number, block in enumerate(layer.blocks)
        }
        least = min(more.values())
        fixed += least
        blocks.append({block: ms - least for block, ms in more.items()})
    return LatencyTable(space, runtime, image_size, fixed, per_class, tuple(blocks))


def _chains(
    space: SearchSpace, paths: Mapping[str, Path], classes: Mapping[str, int], image_size: int
) -> dict[str, PlainPath]:
    """Chains of random weights; batch norm is folded, as on a device."""
    users = path_users(space, paths)
    network = MultiPathNetwork(space, users, classes, batch_norm="shared").eval()
    normalised = dict.fromkeys(paths, NormalisedImage(_GREY, _GREY))
    return plain_paths(network, paths, normalised, dict.fromkeys(paths, image_size), FOLDED)


def _calls(
    chains: Mapping[str, PlainPath], image_size: int, runtime: str, folder: FilePath
) -> Calls:
    """What runs one image on each chain."""
    x = torch.randint(0, 256, (1, 3, image_size, image_size)).float()
    if runtime.startswith("eager"):
        return _eager(chains, x, runtime.removeprefix("eager-"))
    side = image_size
    told = {name: DomainMetadata(("a",), side, side, side, "crop", _GREY, _GREY) for name in chains}
    if runtime == "executorch":
        write_executorch(folder / "space.pte", chains, Metadata(told, {}))
        use_threads(torch.get_num_threads())
        program = ExecutorchModel(folder / "space.pte")
        return {name: partial(program.method(name).execute, (x,)) for name in chains}
    write_onnx(folder, chains, Metadata(told, {}), together=False)
    model, image = OnnxModel(folder, torch.get_num_threads()), {"image": x.numpy()}
    return {name: partial(model.session(name).run, None, image) for name in chains}


def _eager(chains: Mapping[str, PlainPath], x: torch.Tensor, device: str) -> Calls:
    if device == "cpu":
        chosen = torch.device("cpu")
    elif torch.cuda.is_available():
        chosen = torch.device("cuda")
    else:
        raise UserError("--runtime eager-gpu needs a GPU, and torch finds none; take eager-cpu.")
    image = x.to(chosen)

    def call(chain: PlainPath) -> None:
        with torch.inference_mode():
            chain(image)
        if chosen.type == "cuda":
            torch.cuda.synchronize()

    return {name: partial(call, chain.to(chosen)) for name, chain in chains.items()}
