"""Laws of all balancers, in the modules that they serve."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mdl import fit
from mdl.assembly import build_balancer
from mdl.data.transforms import Batch, images_of
from mdl.errors import UserError
from mdl.recipe import BalancingRecipe
from mdl.recipe_callbacks import build_callbacks
from mdl.recipe_files import load_recipe
from mdl.space.search_space import SearchSpace
from mdl.training.balancer import LEAST_LOSS
from mdl.training.base import MultiDomainModule
from mdl.training.retrain import RetrainModule
from tests.dying import dying_at
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, weights
from tests.training import test_retrain, test_search
from tests.training.test_search import CLASSES, batch

METHODS = ["gradnorm", "uncertainty", "dwa", "famo"]


def module(space: SearchSpace, method: str, phase: str = "retrain") -> MultiDomainModule:
    balancer = build_balancer(BalancingRecipe(method=method, interval=1), CLASSES)
    if phase == "search":
        return test_search.module(space, balancer=balancer)
    return test_retrain.module(space, balancer=balancer)


def weights_where(space: SearchSpace, method: str, scales: list[list[float]]) -> list[torch.Tensor]:
    """Of each step, whose losses are multiplied by the scales."""
    of, given, weights = module(space, method), batch(), []
    assert isinstance(of, RetrainModule) and of.balancer is not None
    of.balancer.begin(of.network)
    for scale in scales:
        logits = of.network(images_of(given), of.paths)
        of.weighted_sum(of.losses(logits, given) * torch.tensor(scale))
        if of.balancer.looks_back:
            of.balancer.look_back(of.domain_losses.clamp_min(LEAST_LOSS))
        weights.append(of.domain_weights.clone())
    return weights


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_zero_leaves_weights_of_mean_one(space: SearchSpace, method: str) -> None:
    """From the start, between two others, or of all: of domains that are learnt by heart."""
    for scales in ([[0.0, 1.0]] * 6, [[1.0, 1.0], [0.0, 0.9]] * 3, [[0.0, 0.0]] * 6):
        for found in weights_where(space, method, scales):
            assert found.isfinite().all() and (found >= 0).all()
            assert found.mean().item() == pytest.approx(1, rel=1e-4)


def test_a_loss_of_zero_at_the_start_does_not_end_what_gradnorm_learns(space: SearchSpace) -> None:
    first, *_, last = weights_where(space, "gradnorm", [[0.0, 1.0]] * 6)
    assert torch.equal(first, torch.ones(2))
    assert not torch.allclose(last, first, atol=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_domain_of_one_class_has_nothing_to_balance(method: str) -> None:
    with pytest.raises(UserError, match=f"is {method}, and 'marks' has one class: its loss is 0"):
        build_balancer(BalancingRecipe(method=method), {"birds": 3, "marks": 1})
    assert build_balancer(BalancingRecipe(), {"birds": 3, "marks": 1}) is None


class Batches:
    """Given batches, one a step, as the module's phase wants them."""

    def __init__(self, batches: list[Batch], phase: str = "retrain") -> None:
        self.batches, self.phase = batches, phase

    def __iter__(self) -> Any:
        for given in self.batches:
            yield {"train": given, "held_out": given} if self.phase == "search" else given


def trainer(tmp_path: Path, **settings: Any) -> L.Trainer:
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )


@pytest.mark.parametrize("phase", ["search", "retrain"])
@pytest.mark.parametrize("method", METHODS)
def test_the_network_gets_the_gradient_of_the_sum_by_the_weights_that_the_buffer_holds(
    space: SearchSpace, tmp_path: Path, method: str, phase: str
) -> None:
    model, batches = module(space, method, phase), [batch() for _ in range(4)]
    model.clip_norm = None
    networks, paths = [], []
    step = model.weight_step

    def watched(given: Any, of: Any) -> None:
        networks.append(copy.deepcopy(model.network))
        paths.append(of)
        step(given, of)

    model.weight_step = watched  # type: ignore[method-assign]
    trainer(tmp_path).fit(model, Batches(batches, phase))
    assert model.domain_weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert model.domain_weights.std() > 1e-4

    images = {d: x for d, (x, _) in batches[-1].items()}
    losses = model.losses(networks[-1](images, paths[-1]), batches[-1])
    assert torch.equal(losses, model.domain_losses)
    networks[-1].zero_grad(set_to_none=True)
    (model.domain_weights * losses).sum().backward()
    ours = dict(model.network.named_parameters())
    for name, parameter in networks[-1].named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, ours[name].grad, atol=1e-7), name


@pytest.mark.parametrize("method", METHODS)
def test_one_batch_is_one_step_of_lightnings(
    space: SearchSpace, tmp_path: Path, method: str
) -> None:
    fitting = trainer(tmp_path)
    fitting.fit(module(space, method), Batches([batch() for _ in range(3)]))
    assert fitting.global_step == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_is_still_told_by_domain_and_step(
    space: SearchSpace, tmp_path: Path, method: str
) -> None:
    batches = [batch() for _ in range(4)]
    batches[2]["cars"][0].fill_(math.nan)
    model = module(space, method)
    trainer(tmp_path).fit(model, Batches(batches))
    with pytest.raises(UserError, match="loss of domain 'cars' was not finite at step 2"):
        model.check_finite()


def test_looking_back_counts_no_image_twice(space: SearchSpace, tmp_path: Path) -> None:
    given, statistics = batch(), []
    for method in ("famo", "none"):
        torch.manual_seed(0)
        model = module(space, method)
        trainer(tmp_path).fit(model, Batches([given]))
        statistics.append(list(model.network.buffers()))
    assert all(torch.equal(one, other) for one, other in zip(*statistics, strict=True))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_looking_back_sees_the_weights_after_the_step(
    space: SearchSpace, tmp_path: Path, precision: str
) -> None:
    given, model, seen = batch(), module(space, "famo"), []
    assert model.balancer is not None
    model.balancer.look_back = seen.append  # type: ignore[method-assign]
    trainer(tmp_path, precision=precision).fit(model, Batches([given]))
    assert isinstance(model, RetrainModule)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        after = model.losses_again(given, model.paths)
    assert torch.equal(seen[0], after)
    assert not torch.equal(after, model.domain_losses)


@pytest.mark.parametrize(
    ("recipe", "method"),
    [*((RETRAIN, method) for method in METHODS), (SEARCH, "gradnorm"), (SEARCH, "famo")],
)
def test_a_run_that_stopped_goes_on_as_if_it_had_not(
    small_run: list[str], tmp_path: Path, recipe: str, method: str
) -> None:
    arguments = [recipe, *small_run, "name=it", "callbacks.abdp=null", "balancing.interval=2"]
    arguments += ["retrain.paths=common", f"balancing.method={method}"]
    fit.main([*arguments, f"runs_dir={tmp_path / 'unbroken'}"])
    with dying_at(3):
        fit.main([*arguments, f"runs_dir={tmp_path / 'broken'}"])
    fit.main([*arguments, f"runs_dir={tmp_path / 'broken'}"])
    assert weights(tmp_path / "unbroken" / "it")["domain_weights"].std() > 1e-4
    assert_same_run(tmp_path / "unbroken" / "it", tmp_path / "broken" / "it")


def test_a_recipe_in_which_two_would_set_the_weights_is_refused() -> None:
    recipe = load_recipe([RETRAIN, "balancing.method=dwa"])
    with pytest.raises(UserError, match="Set callbacks.abdp=null, or balancing.method=none"):
        build_callbacks(recipe)
    build_callbacks(load_recipe([RETRAIN, "balancing.method=dwa", "callbacks.abdp=null"]))


def test_gradnorm_is_refused_where_nothing_is_shared() -> None:
    words = [SEARCH, "balancing.method=gradnorm", "callbacks.abdp=null"]
    load_recipe(words)
    with pytest.raises(UserError, match="with network.nodes=private they share none"):
        load_recipe([*words, "network.nodes=private"])


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left; they fork, which only a fresh process without a GPU can."""
    folder = tmp_path_factory.mktemp("two_ranks")
    command = [sys.executable, "-m", "tests.training.two_ranks", str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    return folder


def ranks(folder: Path, method: str) -> list[dict[str, Any]]:
    return [torch.load(folder / method / f"rank{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_have_the_same_weights_of_domains_and_network(
    two_ranks: Path, method: str
) -> None:
    one, other = ranks(two_ranks, method)
    assert one["own"]["random number"] != other["own"]["random number"]
    assert one["common"]["domain_weights"].std() > 1e-6
    torch.testing.assert_close(one["common"], other["common"], rtol=0, atol=0)


def test_over_two_ranks_gradnorm_takes_the_norm_of_their_mean_gradient(two_ranks: Path) -> None:
    found = [of["own"] for of in ranks(two_ranks, "gradnorm")]
    mean = torch.stack([of["gradients"] for of in found]).mean(0)
    for of in found:
        assert torch.allclose(of["norms"], mean.norm(dim=1), rtol=1e-4)
        assert not torch.allclose(of["norms"], of["gradients"].norm(dim=1), rtol=1e-2)
