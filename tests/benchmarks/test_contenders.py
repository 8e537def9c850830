"""What the project is measured against is what it is said to be."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.paired import take_turns
from benchmarks.problem import Problem, Stepper
from benchmarks.speed import Setting, by_domain, retrain_module, search_module, steps_of, whole
from benchmarks.static import StaticNetwork
from mdl.data.transforms import Batch, images_of
from mdl.space.search_space import SearchSpace, Stage
from tests.benchmarks.test_graphed_nodes import Again


@pytest.fixture
def small() -> Problem:
    stages = (Stage(8, 2, 1, "relu"), Stage(16, 3, 2, "hardswish"))
    space = SearchSpace(8, 2, stages, 32, (3, 5))
    classes = {"one": 3, "two": 5, "three": 3}
    return Problem(space, classes, 16, 4, torch.device("cpu"))


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("draw", range(4))
@pytest.mark.parametrize("common", [False, True])
def test_the_limit_computes_as_much_with_as_many_weights(
    small: Problem, draw: int, common: bool
) -> None:
    paths, batch = small.random_paths(draw, common), small.batch()
    derived = small.derived(paths)
    static = StaticNetwork(small.space, paths, small.num_classes, 4, 16)
    count = sum(p.numel() for p in derived.parameters())
    assert sum(p.numel() for p in static.parameters()) == count
    images = images_of(batch)
    assert flops(lambda: static(images)) == flops(lambda: derived(images, paths))
    shapes = {domain: of.shape for domain, of in static(images).items()}
    assert shapes == {domain: (4, n) for domain, n in small.num_classes.items()}


def test_the_limit_computes_what_the_derived_network_does_with_the_same_weights(
    small: Problem,
) -> None:
    paths, batch = small.random_paths(1, common=True), small.batch()
    derived = small.derived(paths)
    static = StaticNetwork(small.space, paths, small.num_classes, 4, 16)
    # on one path the convolutions follow each other in the same order
    theirs = [m for m in static.stretches.modules() if isinstance(m, torch.nn.Conv2d)]
    ours = [m for m in derived.nodes.modules() if isinstance(m, torch.nn.Conv2d)]
    for one, other in zip(theirs, ours, strict=True):
        one.load_state_dict(other.state_dict())
    for domain, head in static.heads.items():
        head.load_state_dict(derived.heads[f"@{domain}"].state_dict())
    found, expected = static(images_of(batch)), whole(derived, paths, batch)
    for domain in expected:
        torch.testing.assert_close(found[domain], expected[domain], rtol=1e-4, atol=1e-5)


def test_the_plain_loop_computes_what_the_grouped_pass_does(small: Problem) -> None:
    paths, batch = small.random_paths(0), small.batch()
    network = small.derived(paths)
    apart, together = by_domain(network, paths, batch), whole(network, paths, batch)
    for domain in together:
        torch.testing.assert_close(apart[domain], together[domain])


def test_bare_steps_train(small: Problem) -> None:
    batch, paths = small.batch(), small.random_paths(0)
    for module, given in (
        (retrain_module(small, paths), batch),
        (search_module(small, warmup=0.0), {"train": batch, "held_out": batch}),
    ):
        before = {name: value.clone() for name, value in module.network.named_parameters()}
        steps_of(module, given, 2)()
        after = dict(module.network.named_parameters())
        assert any(not after[name].equal(value) for name, value in before.items())
        assert module.global_step == 2


def test_contenders_take_as_many_turns_and_none_is_always_first() -> None:
    turns: list[str] = []
    contenders = {name: lambda name=name: turns.append(name) for name in "abc"}
    times = take_turns(contenders, rounds=4, warmup=2)
    assert {name: len(of) for name, of in times.seconds.items()} == dict.fromkeys("abc", 4)
    assert len({turns[at] for at in range(0, 18, 3)}) == 2
    assert times.ratio("a", "a").values == (1.0,) * 4


def test_a_stepper_lowers_the_loss(small: Problem) -> None:
    paths, batch = small.random_paths(0), small.batch()
    network = small.derived(paths)
    stepper = Stepper(network)

    def loss() -> float:
        logits = whole(network, paths, batch)
        losses = [torch.nn.functional.cross_entropy(logits[d], batch[d][1]) for d in batch]
        return float(sum(losses))

    before = loss()
    for _ in range(10):
        stepper.step(whole(network, paths, batch), batch)
    assert loss() < before


class Uncaptured:
    """Computes at once what a GPU would capture."""

    def __init__(self, compute: Callable[[Batch], Tensor]) -> None:
        self.compute = compute

    def launch(self, batch: Batch) -> None:
        self.given = self.compute(batch)

    def result(self) -> Tensor:
        return self.given


def test_the_rows_for_a_gpu_are_made_as_they_are_there(
    small: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, and without writing machine code: what they say is told by a GPU alone."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(gpu, "GradientGraph", Uncaptured)
    monkeypatch.setattr(gpu, "STEPS_UNTIL_CAPTURED", 1)
    setting = Setting(rounds=2)
    for row in gpu.check(small):
        assert float(row.found) <= float(row.goal.removeprefix("at most ")), row
    parts = (gpu.grouped, gpu.against_one_batch, gpu.formats, partial(gpu.nodes, capture=Again))
    # three kinds of paths in two precisions, twice each
    assert [len(list(part(setting, small))) for part in parts] == [12, 3, 1, 6]
