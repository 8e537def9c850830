"""How long the blocks of a space take on a runtime, from whole paths that differ in one block.

A block by itself would be measured with what a runtime does at the ends of a graph: conversions of
memory formats, the call. So whole paths are measured: one of the space's reference block
throughout, and for each other block of each layer that path with the block in its place. Layers
of one shape, in the same stage, are measured once.

What a block adds to that one path is not what it adds to others where weights outgrow a cache: such
a table can miss every other path (docs/results/device.md). So random paths are measured as well,
and the table is fitted to all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

import torch

from mdl.device.block_times import Timed, block_times, changed_paths
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
from mdl.space.search_space import Path, SearchSpace

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
    space: SearchSpace,
    image_size: int,
    runtime: str,
    folder: FilePath,
    repeats: int,
    fitted: int,
    checked: int,
) -> tuple[LatencyTable, list[Predicted]]:
    """Measures a space's blocks, and random paths to fit the table to and to check it by.

    runtime: one of `RUNTIMES`. folder: for the files of a runtime. repeats: times that each path
    is run. fitted, checked: numbers of random paths, others for each.
    """
    changed = {f"changed{number}": path for number, path in enumerate(changed_paths(space))}
    generator = random.Random(0)
    check = {f"checked{number}": space.random_path(generator) for number in range(checked)}
    fit = {f"fitted{number}": space.random_path(generator) for number in range(fitted)}
    every = {"many": changed["changed0"], **changed, **check, **fit}
    classes = {name: _MANY if name == "many" else _FEW for name in every}
    chains = _chains(space, every, classes, image_size)
    took = milliseconds(_calls(chains, image_size, runtime, folder), repeats)
    per_class = max(took["many"] - took["changed0"], 0.0) / (_MANY - _FEW)

    def timed(paths: Mapping[str, Path]) -> Timed:
        return [(path, took[name] - per_class * _FEW) for name, path in paths.items()]

    fixed, blocks = block_times(space, timed(changed), timed(fit))
    table = LatencyTable(space, runtime, image_size, fixed, per_class, blocks)
    checks = [
        Predicted(table.path_milliseconds(path, _FEW), took[name]) for name, path in check.items()
    ]
    return table, checks


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
        write_executorch(folder / "space.pte", chains, Metadata(told, {}), together=False)
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
