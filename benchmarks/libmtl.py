"""LibMTL 1.1.5's Trainer, multi-input with equal weighting, on a network of this project.

It is no dependency: `pip download --no-deps LibMTL==1.1.5` and unpack the wheel; its folder is
given to the benchmark by --libmtl. What it takes of torchvision and scipy is not needed here and
not imported; its Trainer names a GPU, which is replaced by the device at hand.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.problem import Problem
from mdl.data.transforms import Batch
from mdl.networks.multipath import MultiPathNetwork
from mdl.space.search_space import Path as SpacePath


class _Loader:
    """The same batch, as often as asked for; iterators have the `next` that LibMTL calls."""

    def __init__(self, images: Tensor, labels: Tensor, steps: int) -> None:
        self.batch, self.steps = (images, labels), steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        return self.batch

    next = __next__


def libmtl_training(
    wheel: Path, problem: Problem, network: MultiPathNetwork, paths: Mapping[str, SpacePath]
) -> Any:
    """A function of a number of steps that trains so long by LibMTL's own loop."""
    for name in ("LibMTL", "LibMTL.architecture", "LibMTL.weighting"):
        package = types.ModuleType(name)  # in place of its own, which imports all that there is
        package.__path__ = [str(wheel.joinpath(*name.split(".")))]
        sys.modules[name] = package
    architectures = importlib.import_module("LibMTL.architecture.abstract_arch")
    trainers = importlib.import_module("LibMTL.trainer")
    metrics = importlib.import_module("LibMTL.metrics")
    losses = importlib.import_module("LibMTL.loss")
    weighting = importlib.import_module("LibMTL.weighting.EW")

    class OnePath(architectures.AbsArchitecture):  # type: ignore[misc]
        """A task's images go down its own path; LibMTL gives them task by task."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.encoder = network

        def forward(self, inputs: Tensor, task_name: str) -> dict[str, Tensor]:
            logits: dict[str, Tensor] = self.encoder({task_name: inputs}, paths)
            return logits

    tasks = {
        domain: {
            "metrics": ["Acc"],
            "metrics_fn": metrics.AccMetric(),
            "loss_fn": losses.CELoss(),
            "weight": [1],
        }
        for domain in problem.domains
    }
    own = _with(torch, device=lambda *_: problem.device)
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(trainers, "torch", own):
        trainer = trainers.Trainer(
            task_dict=tasks,
            weighting=weighting.EW,
            architecture=OnePath,
            encoder_class=None,
            decoders=nn.ModuleDict(),
            rep_grad=False,
            multi_input=True,
            optim_param={"optim": "adam", "lr": 3e-3, "weight_decay": 0.02},
            scheduler_param=None,
            weight_args={},
            arch_args={},
        )
    trainer.test = lambda *_, **__: None  # after each epoch; training alone is compared
    batch: Batch = problem.batch()

    def train(steps: int) -> None:
        loaders = {domain: _Loader(*of, steps) for domain, of in batch.items()}
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train(loaders, None, 1)

    return train


def _with(module: types.ModuleType, **changed: Any) -> types.ModuleType:
    """A module with some of its names changed."""
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update(vars(module))
    copy.__dict__.update(changed)
    return copy
