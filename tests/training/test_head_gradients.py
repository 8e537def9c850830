"""Gradients at the head convolution, one pass against one full pass per domain."""

import pytest
import torch
from torch.nn import functional as F

from mdl.networks.multipath import MultiPathNetwork, supernet_users
from mdl.space.search_space import SearchSpace
from mdl.training.head_gradients import HeadGradients

CLASSES = {"birds": 3, "cars": 4, "types": 2}


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
@pytest.mark.parametrize("side", [8, 12])
def test_they_are_those_of_a_full_backward_pass_per_domain(
    space: SearchSpace, batch_norm: str, side: int
) -> None:
    """Unequal batches; where one domain's images have another size, the node is called twice."""
    network = MultiPathNetwork(
        space, supernet_users(space, list(CLASSES)), CLASSES, batch_norm=batch_norm, running=False
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sides, counts = {"birds": 8, "cars": side, "types": 8}, {"birds": 4, "cars": 6, "types": 2}
    images = {d: torch.randn(counts[d], 3, sides[d], sides[d]) for d in CLASSES}
    path = {d: space.uniform_path(space.reference_block) for d in CLASSES}
    gradients = HeadGradients(network)
    with torch.no_grad():
        network(images, path)  # what is not trained on is not watched
    logits = network(images, path)
    labels = {d: torch.arange(counts[d]) % n for d, n in CLASSES.items()}
    losses = torch.stack([F.cross_entropy(logits[d], labels[d]) for d in CLASSES])
    found = gradients.of(losses)
    weight = network.nodes["head"].conv.weight
    assert weight.grad is None
    for loss, gradient in zip(losses, found, strict=True):
        weight.grad = None
        loss.backward(retain_graph=True)
        assert gradient.abs().max() > 1e-4
        assert torch.allclose(gradient, weight.grad[..., 0, 0], atol=1e-7, rtol=1e-4)
