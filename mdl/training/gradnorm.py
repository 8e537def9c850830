"""GradNorm: weights under which all domains' gradients are as large as their progress asks for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mdl.networks.multipath import MultiPathNetwork
from mdl.training.balancer import Balancer
from mdl.training.head_gradients import HeadGradients
from mdl.training.ranks import mean_over_ranks

FLOOR = 0.01


class GradNorm(Balancer):
    """Learns w, of sum T, from L_grad(w) = sum_i |G_i - mean(G) * r_i ** alpha|, T domains.

    G_i = ||grad_W (w_i L_i)||, W the head convolution's weights; r_i = (L_i / L_i(0)) / mean_j
    (L_j / L_j(0)), the relative inverse training rate. The target mean(G) * r_i ** alpha is held
    constant; L_grad is differentiated with respect to w alone; one step of Adam, then w is scaled
    back to the sum T. A step's network is trained with the w that the step began with.

    Source: Chen et al., ICML 2018, section 3 and algorithm 1.
    Differs from the paper: no w falls below 0.01. Adam's step does not shrink with w, and could
    take it through zero, where a domain's loss is climbed and G_i grows again.

    Over several ranks a domain's loss is the mean of theirs, so its gradient is the mean of their
    gradients: those are averaged, before their norm is taken.

    alpha: how strongly domains that learn slowly are favoured; 0 makes all norms equal.
    learning_rate: of Adam; the paper's is 0.025.
    initial_loss: L(0) is 'measured' in the first step, or 'log_classes', the loss of a guess.
    """

    weights: Tensor
    optimizer: torch.optim.Adam
    initial: Tensor | None

    def __init__(self, alpha: float, learning_rate: float, initial_loss: str) -> None:
        self.alpha, self.learning_rate = alpha, learning_rate
        self.initial_loss = initial_loss

    def begin(self, network: MultiPathNetwork) -> None:
        self.gradients = HeadGradients(network)
        device = self.gradients.weight.device
        self.weights = torch.ones(len(network.domains), device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weights], lr=self.learning_rate)
        self.initial = None
        if self.initial_loss == "log_classes":
            # at least two: one class is no guess, and its loss zero
            guesses = [math.log(max(classes, 2)) for classes in network.num_classes.values()]
            self.initial = torch.tensor(guesses, device=device)

    def weigh(self, losses: Tensor, means: Tensor) -> Tensor:
        weights = self.weights.detach().clone()
        if self.initial is None:
            self.initial = means.clone()
        norms = mean_over_ranks(self.gradients.of(losses)).flatten(1).norm(dim=1)
        self._learn(self.objective(norms, means / self.initial))
        return weights

    def objective(self, norms: Tensor, ratios: Tensor) -> Tensor:
        """L_grad, to be differentiated with respect to w alone.

        norms: ||grad_W L_i||, [domains]. ratios: L_i / L_i(0), [domains].
        """
        rates = ratios / ratios.mean()
        weighted = self.weights * norms
        target = (weighted.mean() * rates**self.alpha).detach()
        return (weighted - target).abs().sum()

    def _learn(self, objective: Tensor) -> None:
        self.weights.grad = torch.autograd.grad(objective, self.weights)[0]
        self.optimizer.step()
        with torch.no_grad():
            self.weights.clamp_(min=FLOOR)
            self.weights.mul_(len(self.weights) / self.weights.sum())

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights.detach(),
            "optimizer": self.optimizer.state_dict(),
            "initial": self.initial,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        with torch.no_grad():
            self.weights.copy_(state_dict["weights"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.initial = state_dict["initial"].to(self.weights.device)
