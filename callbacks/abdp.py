"""ABDP, adaptive balanced domain prioritization: domains weighted by their losses."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mdl.training.base import MultiDomainModule


class ABDP(L.Callback):
    """Sets the domains' weights so that domains with a greater loss count more.

    Follows a smoothed loss per domain and weights it as the gradient of the boosted objective
    sum_d h(L_d), h(L) = exp(L / w): weight_d = exp(L_d / w), scaled to mean one.

    Source of h: a public third-party reimplementation of MPNAS (Concord-NAS), with w = 1.
    Differs from the paper: how w adapts is not known here; these choices are ours.
    - A domain's loss is divided by the logarithm of its number of classes, the loss of a guess:
      losses of 2 and of 1000 classes are comparable.
    - w is `temperature` times the mean of those losses: as all losses fall, w falls with them,
      so that their relation sets the weights, not their height.
    - Domains that rest while others are added to their network have no loss, and no part in this.
    - Weights stay between 1 / bound and bound, before they are scaled to mean one.

    momentum: of the smoothed losses. start: steps before weights leave one.

    Raises ValueError for values that make no weights.
    """

    sets_domain_weights = True  # so that no recipe has it beside a balancing method

    def __init__(
        self,
        momentum: float = 0.98,
        temperature: float = 1.0,
        bound: float = 4.0,
        start: int = 50,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; expected at least 0 and below 1")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a number above 0")
        if bound < 1:
            raise ValueError(f"bound is {bound}; expected 1 or more")
        if start < 0:
            raise ValueError(f"start is {start}; expected steps, 0 or more")
        self.momentum, self.temperature = momentum, temperature
        self.bound, self.start = bound, start
        self.smoothed: Tensor | None = None
        self._guesses: Tensor | None = None
        self.steps = 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, MultiDomainModule)
        rows = pl_module.trained_rows
        if self._guesses is None or self._guesses.device != pl_module.domain_losses.device:
            self._guesses = _guesses(pl_module)
        losses = (pl_module.domain_losses / self._guesses)[rows]
        if self.smoothed is None:
            self.smoothed = torch.zeros_like(losses)
        self.smoothed = self.smoothed.to(losses.device).lerp(losses, 1 - self.momentum)
        self.steps += 1
        if self.steps > self.start:
            unbiased = self.smoothed / (1 - self.momentum**self.steps)
            pl_module.domain_weights[rows] = self.weights(unbiased)

    def weights(self, losses: Tensor) -> Tensor:
        """Losses, in guesses, [domains] -> weights of mean one."""
        # no losses where a super-network is frozen
        mean = losses.mean().clamp_min(torch.finfo(losses.dtype).tiny)
        boosted = ((losses - mean) / (self.temperature * mean)).exp()
        bounded = boosted.clamp(1 / self.bound, self.bound)
        return bounded / bounded.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"smoothed": self.smoothed, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.smoothed, self.steps = state_dict["smoothed"], state_dict["steps"]


def _guesses(module: MultiDomainModule) -> Tensor:
    """Cross entropy of guessing, per domain; at least that of two classes."""
    classes = [max(count, 2) for count in module.num_classes.values()]
    return torch.tensor([math.log(n) for n in classes], device=module.domain_losses.device)
