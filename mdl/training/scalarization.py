"""TorchJD's scalarizers as balancers: uncertainty weighting, DWA and FAMO."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torchjd.scalarization import DWA, FAMO, UW, Scalarizer

from mdl.networks.multipath import MultiPathNetwork
from mdl.training.balancer import Balancer

S = TypeVar("S", bound=Scalarizer)


class Scalarization(Balancer, Generic[S]):
    """A scalarizer makes one number of the domains' losses; a loss's weight is its derivative.

    So the gradient of the weighted sum of the losses has the direction of the scalarizer's own,
    taken at the losses' means over all ranks.

    Differs from the papers: weights are scaled to mean one. The scale of a gradient is nothing to
    Adam, but something to the clipping of its norm, which so means the same for all methods.
    """

    scalarizer: S
    device: torch.device

    def begin(self, network: MultiPathNetwork) -> None:
        self.device = next(network.parameters()).device
        self.scalarizer = self.build(len(network.domains)).to(self.device)

    @abstractmethod
    def build(self, domains: int) -> S:
        """The scalarizer of so many losses, as it is before the first step."""

    def weigh(self, losses: Tensor, means: Tensor) -> Tensor:
        values = means.clone().requires_grad_()
        objective = self.scalarizer(values)
        (weights,) = torch.autograd.grad(objective, values, retain_graph=True)
        self.learn(objective)
        return weights / weights.mean()

    def learn(self, objective: Tensor) -> None:
        """What a step's losses teach, once they are weighed. objective: the scalarizer's number."""


class UncertaintyWeighting(Scalarization[UW]):
    """sum_i (exp(-s_i) L_i + s_i) / 2, a log-variance s_i learnt for each domain.

    Source: Kendall et al., CVPR 2018.
    Differs from the paper: the log-variances have an Adam of their own.

    learning_rate: of that Adam.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def build(self, domains: int) -> UW:
        return UW(domains)

    def begin(self, network: MultiPathNetwork) -> None:
        super().begin(network)
        self.optimizer = torch.optim.Adam([self.scalarizer.log_var], lr=self.learning_rate)

    def learn(self, objective: Tensor) -> None:
        log_var = self.scalarizer.log_var
        log_var.grad = torch.autograd.grad(objective, log_var)[0]
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "scalarizer": self.scalarizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scalarizer.load_state_dict(state_dict["scalarizer"])
        self.optimizer.load_state_dict(state_dict["optimizer"])


class DynamicWeightAverage(Scalarization[DWA]):
    """Weighs by how slowly losses fall: a softmax of the ratio of their means in two epochs.

    Source: Liu et al., CVPR 2019.
    Differs from the paper: endless streams have no epoch; `interval` steps stand for one.

    temperature: of the softmax, greater is more equal; the paper's is 2.
    """

    def __init__(self, temperature: float, interval: int) -> None:
        self.temperature, self.interval = temperature, interval

    def build(self, domains: int) -> DWA:
        return DWA(self.temperature)

    def learn(self, objective: Tensor) -> None:
        if self.scalarizer._n_batches == self.interval:
            self.scalarizer.step()

    # TorchJD keeps these to itself. Its pinned version and the test of resuming hold them.
    def state_dict(self) -> dict[str, Any]:
        return {
            "sum": self.scalarizer._loss_sum,
            "count": self.scalarizer._n_batches,
            "averages": self.scalarizer._previous_averages,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        total, averages = state_dict["sum"], state_dict["averages"]
        self.scalarizer._loss_sum = None if total is None else total.to(self.device)
        self.scalarizer._n_batches = state_dict["count"]
        self.scalarizer._previous_averages = [average.to(self.device) for average in averages]


class FastAdaptive(Scalarization[FAMO]):
    """c * sum_i z_i log L_i, which lowers all losses at one rate; z learns from what a step did.

    Source: Liu et al., NeurIPS 2023 (FAMO). Costs a second forward pass of each training batch.

    learning_rate: of the Adam of z's logits; the paper's is 0.025.
    """

    looks_back = True

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def build(self, domains: int) -> FAMO:
        return FAMO(domains, lr=self.learning_rate)

    def look_back(self, means: Tensor) -> None:
        self.scalarizer.update(means)

    def state_dict(self) -> dict[str, Any]:
        return {
            "scalarizer": self.scalarizer.state_dict(),
            "optimizer": self._optimizer().state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # any step makes the Adam, whose state is then replaced together with the logits
        ones = torch.ones_like(self.scalarizer.min_losses)
        self.scalarizer(ones)
        self.scalarizer.update(ones)
        self.scalarizer.load_state_dict(state_dict["scalarizer"])
        self._optimizer().load_state_dict(state_dict["optimizer"])

    def _optimizer(self) -> torch.optim.Adam:
        # TorchJD makes it in the first update and keeps it to itself; see above
        optimizer = self.scalarizer._optimizer
        assert optimizer is not None
        return optimizer
