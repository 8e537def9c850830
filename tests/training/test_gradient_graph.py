"""What holds on a GPU: run there with python -m pytest -m gpu; elsewhere these are skipped."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.bare import bare
from benchmarks.problem import Problem
from benchmarks.speed import TRAINING, search_module
from mdl.data.transforms import Batch
from mdl.networks.draws import PathUrn
from mdl.space.architecture import Architecture
from mdl.space.search_space import Path, SearchSpace
from mdl.training.finalists import FinalistsModule
from mdl.training.retrain import RetrainModule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture
def problem(space: SearchSpace) -> Problem:
    classes = {f"domain{number}": number + 2 for number in range(6)}
    return Problem(space, classes, 16, 4, torch.device("cuda"))


@pytest.fixture
def paths(problem: Problem) -> dict[str, Path]:
    return PathUrn(problem.space, 2.0, random.Random(0)).draw(problem.domains)


@pytest.fixture
def batches(problem: Problem) -> list[Batch]:
    torch.manual_seed(1)
    made = [problem.batch() for _ in range(12)]
    return [
        {d: (torch.randn_like(images), labels) for d, (images, labels) in of.items()} for of in made
    ]


@pytest.fixture
def waits_for_nothing() -> Iterator[None]:
    """Lets every wait for the device fail."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def training(problem: Problem, paths: dict[str, Path], cuda_graph: bool) -> RetrainModule:
    torch.manual_seed(0)
    network = problem.derived(paths)
    made = RetrainModule(network, paths, ema_decay=0.99, cuda_graph=cuda_graph, **TRAINING)
    return bare(made.to(problem.device))  # type: ignore[return-value]


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("half", [False, True])
def test_a_captured_step_is_the_step_to_the_bit(
    problem: Problem, paths: dict[str, Path], batches: list[Batch], half: bool
) -> None:
    plain, captured = training(problem, paths, False), training(problem, paths, True)
    for step, batch in enumerate(batches):
        for module in (plain, captured):
            # as ABDP does between two steps
            module.domain_weights.copy_(torch.linspace(0.5, 1.5, len(batch)) + 0.01 * step)
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                module.training_step(batch, step)
        assert torch.equal(plain.domain_losses, captured.domain_losses)
    other = state(captured)
    assert all(torch.equal(of, other[name]) for name, of in state(plain).items())


def test_finalists_side_by_side_are_what_they_are_one_by_one(
    problem: Problem, batches: list[Batch]
) -> None:
    def trained(cuda_graph: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        drawn = [problem.random_paths(draw) for draw in range(3)]
        made = FinalistsModule(
            [problem.derived(of) for of in drawn],
            [Architecture(problem.space, of, {}) for of in drawn],
            ema_decay=0.99,
            cuda_graph=cuda_graph,
            **TRAINING | {"total_steps": 1000},
        )
        module = bare(made.to(problem.device))
        for number, batch in enumerate(batches):
            module.train_on(batch, [0, 1, 2] if number < 8 else [0, 2])  # type: ignore[operator]
        return state(module)

    apart, together = trained(False), trained(True)
    assert all(torch.equal(of, together[name]) for name, of in apart.items())


def test_a_retraining_step_waits_for_nothing(
    request: pytest.FixtureRequest, problem: Problem, paths: dict[str, Path], batches: list[Batch]
) -> None:
    captured, plain = training(problem, paths, True), training(problem, paths, False)
    for batch in batches[:5]:
        captured.training_step(batch, 0)
        plain.training_step(batch, 0)
    request.getfixturevalue("waits_for_nothing")
    for batch in batches[5:]:
        captured.training_step(batch, 0)
        plain.training_step(batch, 0)


def test_a_search_step_waits_once_for_its_paths(problem: Problem, batches: list[Batch]) -> None:
    module = bare(search_module(problem, warmup=0.0))
    both = [{"train": of, "held_out": of} for of in batches]
    for step in range(24):
        module.training_step(both[step % len(both)], step)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            module.training_step(both[0], 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(of.message) for of in told if "synchroniz" in str(of.message)]
    assert len(waits) <= 1, waits


def test_the_grouped_pass_is_that_of_each_domain(
    problem: Problem, paths: dict[str, Path], batches: list[Batch]
) -> None:
    common = dict.fromkeys(problem.domains, paths[problem.domains[0]])
    network = problem.derived(common)
    images = {domain: images for domain, (images, _) in batches[0].items()}
    together = network(images, common)
    for domain, of in images.items():
        alone = network({domain: of}, common)[domain]
        torch.testing.assert_close(together[domain], alone, rtol=1e-3, atol=1e-4)
