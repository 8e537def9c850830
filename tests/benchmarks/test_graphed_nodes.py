"""Nodes called as graphs compute what they do otherwise. On a CPU a 'graph' is a call again."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.graphed_nodes import Capture, CudaCapture, GraphedNetwork, Memory
from mdl.networks.multipath import MultiPathNetwork, supernet_users
from mdl.space.search_space import Path, SearchSpace
from mdl.training.optim import weight_optimizer

CLASSES = {"birds": 3, "cars": 4, "fish": 2, "maps": 5}  # from four on norm is one call on a GPU
SIZES = {"birds": 8, "cars": 8, "fish": 12, "maps": 8}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
        ],
    ),
]


class Again:
    """Captures nothing: what is replayed is called again. Notes how often for which memory."""

    def __init__(self) -> None:
        self.captured: list[Memory] = []
        self.replayed: list[Memory] = []

    def __call__(self, compute: Callable[[], None], memory: Memory) -> Callable[[], None]:
        self.captured.append(memory)
        compute()

        def replay() -> None:
            self.replayed.append(memory)
            compute()

        return replay


def capture_on(device: str) -> Capture:
    return CudaCapture() if device == "cuda" else Again()


def plain_network(space: SearchSpace, device: str = "cpu", tied: bool = False) -> MultiPathNetwork:
    torch.manual_seed(0)
    users = supernet_users(space, list(CLASSES))
    made = MultiPathNetwork(space, users, CLASSES, running=False, tied=tied)
    return made.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def graphed(
    space: SearchSpace, capture: Capture, device: str = "cpu", tied: bool = False
) -> GraphedNetwork:
    torch.manual_seed(0)
    users = supernet_users(space, list(CLASSES))
    made = GraphedNetwork(space, users, CLASSES, tied=tied, capture=capture)
    return made.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images(sizes: Mapping[str, int], device: str) -> dict[str, Tensor]:
    return {d: torch.randn(4, 3, size, size).to(device) for d, size in sizes.items()}


def drawn(space: SearchSpace, step: int) -> dict[str, Path]:
    """Two steps on one common path in turns with two on a path for each domain."""
    generator = random.Random(step % 7)
    if step % 4 < 2:
        return dict.fromkeys(CLASSES, space.random_path(generator))
    return {domain: space.random_path(generator) for domain in CLASSES}


def gradients(network: MultiPathNetwork) -> dict[str, Tensor | None]:
    return {
        name: None if of.grad is None else of.grad.clone()
        for name, of in network.named_parameters()
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, dict.fromkeys(SIZES, 8)])
@pytest.mark.parametrize("half", [False, True])
def test_steps_of_graphs_are_the_steps(
    space: SearchSpace, half: bool, sizes: dict[str, int], tied: bool, device: str
) -> None:
    plain = plain_network(space, device, tied)
    graphs = graphed(space, capture_on(device), device, tied)
    optimizers = [weight_optimizer(of, 1e-2, 0.01, norm_momentum=False) for of in (plain, graphs)]
    for step in range(24):
        batch, paths = images(sizes, device), drawn(space, step)
        shapes = {domain: x.shape for domain, x in batch.items()}
        # as the same calls, so that a common path's norm is of all and the others' of each
        route = graphs.route(shapes, paths)
        # no cache, as Lightning: what is cast before a step would be what is used after it
        precision = torch.autocast(device, torch.bfloat16, half, cache_enabled=False)
        tolerance = {"rtol": 5e-2, "atol": 5e-3} if half else {"rtol": 1e-4, "atol": 1e-5}
        found = []
        for network, optimizer in zip((plain, graphs), optimizers, strict=True):
            optimizer.zero_grad()
            with precision:
                logits = network.follow(batch, route)
                losses = [F.cross_entropy(of.float(), of.argmin(1)) for of in logits.values()]
            torch.stack(losses).sum().backward()
            found.append((logits, gradients(network)))
            optimizer.step()
        torch.testing.assert_close(*found, **tolerance)
        # the same weights for what comes, or rounding would add up
        graphs.load_state_dict(plain.state_dict())
        with torch.no_grad(), precision:  # as the held-out batch
            held_out = [network.follow(batch, route) for network in (plain, graphs)]
        torch.testing.assert_close(*held_out, **tolerance)


def test_the_memory_of_a_layer_and_company_is_used_once_a_step(space: SearchSpace) -> None:
    again = Again()
    network = graphed(space, again)
    for step in range(40):
        again.replayed.clear()
        logits = network(images(SIZES, "cpu"), drawn(space, step))
        assert len(again.replayed) == len(set(again.replayed))
        forward = list(again.replayed)
        torch.stack([of.sum() for of in logits.values()]).sum().backward()
        # backward every call that was replayed forward, and no other
        assert sorted(map(str, again.replayed)) == sorted(map(str, 2 * forward))
    assert again.replayed


def test_a_pass_without_gradient_captures_no_pass_backward(space: SearchSpace) -> None:
    again = Again()
    network = graphed(space, again)
    paths = drawn(space, 0)
    expected = plain_network(space)(batch := images(SIZES, "cpu"), paths)
    with torch.no_grad():
        for _ in range(3):
            found = network(batch, paths)
    assert len(again.captured) == len(set(again.captured))  # one pass each
    torch.testing.assert_close(found, {d: of.detach() for d, of in expected.items()})


def test_nodes_at_rest_get_no_gradient(space: SearchSpace) -> None:
    network = graphed(space, Again())
    resting = next(iter(network.nodes.values()))  # the stem
    resting.requires_grad_(False)
    paths = drawn(space, 0)
    for _ in range(3):
        network.zero_grad()
        logits = network(images(SIZES, "cpu"), paths)
        torch.stack([of.sum() for of in logits.values()]).sum().backward()
    assert all(of.grad is None for of in resting.parameters())
    visited = network.nodes["head"]
    assert all(of.grad is not None for of in visited.parameters())
