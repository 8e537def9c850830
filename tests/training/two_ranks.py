"""Retrains on two ranks, each with images of its own, once per balancing method.

    python -m tests.training.two_ranks FOLDER

Leaves FOLDER/METHOD/rank0 and rank1: what each rank ended with; and for GradNorm its last norms,
with the gradient that each domain's loss has on that rank, by a full pass of its own.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdl.data.transforms import Batch
from mdl.space.search_space import SearchSpace, Stage
from mdl.training.gradnorm import GradNorm
from mdl.training.retrain import RetrainModule
from tests.training.test_balancer import METHODS, module, trainer
from tests.training.test_search import batch


class OwnBatches:
    """Other images on each rank."""

    def __iter__(self) -> Iterator[Batch]:
        torch.manual_seed(torch.distributed.get_rank())
        return iter([batch() for _ in range(3)])


def watch(model: RetrainModule, found: dict[str, Any]) -> None:
    """Keeps GradNorm's norms, and the gradients by the long way."""
    assert isinstance(model.balancer, GradNorm)
    objective, weighted_sum = model.balancer.objective, model.weighted_sum

    def kept_norms(norms: Tensor, ratios: Tensor) -> Tensor:
        found["norms"] = norms.detach()
        return objective(norms, ratios)

    def kept_gradients(losses: Tensor) -> Tensor:
        weight = model.network.nodes["head"].conv.weight
        each = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
        found["gradients"] = torch.stack(each).flatten(1)
        return weighted_sum(losses)

    model.balancer.objective = kept_norms  # type: ignore[method-assign]
    model.weighted_sum = kept_gradients  # type: ignore[method-assign]


def retrain(method: str, folder: Path) -> None:
    random.seed(0)
    torch.manual_seed(0)
    space = SearchSpace(8, 1, (Stage(8, 2, 2, "relu"),), 16, (3,), (2,))
    model = module(space, method)
    assert isinstance(model, RetrainModule)
    own: dict[str, Any] = {}
    if method == "gradnorm":
        watch(model, own)

    def save() -> None:
        assert model.balancer is not None
        common = {
            "balancer": model.balancer.state_dict(),
            "domain_weights": model.domain_weights,
            "network": dict(model.network.named_parameters()),
        }
        own["random number"] = torch.rand(1)
        folder.mkdir(exist_ok=True)
        torch.save({"common": common, "own": own}, folder / f"rank{model.global_rank}")

    model.on_train_end = save  # type: ignore[method-assign]
    trainer(folder, devices=2, strategy="ddp_fork").fit(model, OwnBatches())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method in METHODS:
        retrain(method, Path(sys.argv[1]) / method)
