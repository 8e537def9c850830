"""The moving average of a network's weights, which is what is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Exponential moving average of weights and running statistics, `module`; it needs no gradient.

    torch's own `AveragedModel` asks the device in every step how often it has averaged, which
    makes a step wait for a GPU twice.

    decay: of the average. It rises to this value from 0.1 as (1 + step) / (10 + step), so that
    short runs are not held back; the first step's weights are taken as they are.
    step: gives the number of steps made.
    """

    n_averaged: Tensor

    def __init__(self, network: nn.Module, decay: float, step: Callable[[], int]) -> None:
        super().__init__()
        self.module = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("n_averaged", torch.tensor(0))  # checkpoints have always had it
        self.decay, self.step = decay, step

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Takes a step's weights into the average; counts (of batches) are copied."""
        pairs = list(zip(_tensors(self.module), _tensors(network), strict=True))
        real = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        step = self.step()
        decay = min(self.decay, (1 + step) / (10 + step)) if step > 1 else 0.0
        averages, values = (list(of) for of in zip(*real, strict=True))
        torch._foreach_lerp_(averages, values, 1 - decay)
        for count, value in counts:
            count.copy_(value)
        self.n_averaged += 1


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
