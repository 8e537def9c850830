"""The moving average of a network's weights, which is what is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage(AveragedModel):
    """Exponential moving average of weights and running statistics; it needs no gradient.

    decay: of the average. It rises to this value from 0.1 as (1 + step) / (10 + step), so that
    short runs are not held back. step: gives the number of steps made.
    """

    def __init__(self, network: nn.Module, decay: float, step: Callable[[], int]) -> None:
        super().__init__(network, multi_avg_fn=self._lerp, use_buffers=True)
        self.requires_grad_(False)
        self.decay, self.step = decay, step

    @torch.no_grad()
    def _lerp(self, averages: Any, values: Any, num_averaged: Any) -> None:
        """Averages tensors of one type; counts (of batches, by shared batch norm) are copied."""
        step = self.step()
        decay = min(self.decay, (1 + step) / (10 + step))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            torch._foreach_copy_(averages, values)
