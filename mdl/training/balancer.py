"""A balancer: how much each domain's loss counts, by a rule with parameters of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from mdl.networks.multipath import MultiPathNetwork

LEAST_LOSS = 1e-3
"""Nats that a domain's loss counts for at least, wherever it is learnt already.

Differs from the papers: balancers divide by losses and take their logarithms, and with hard labels
a domain that is learnt by heart has a loss of 0.
"""


class Balancer(ABC):
    """Gives the weights of the domains' losses, step by step.

    It is no part of the module that it serves: Lightning does not count its optimizer's steps, and
    DDP waits for no gradient of its parameters. What it is given is the same on all ranks, and so
    is what it gives. `begin` comes before anything else, `load_state_dict` after it.
    """

    looks_back = False
    """Whether it wants the losses of the step's batch again, after the step (`look_back`)."""

    @abstractmethod
    def begin(self, network: MultiPathNetwork) -> None:
        """Sets out at equal weights, for a network that lies on its device."""

    @abstractmethod
    def weigh(self, losses: Tensor, means: Tensor) -> Tensor:
        """The weights of this step's losses, [domains], of mean one; and learns from the losses.

        losses: with their graph, [domains]. means: the same over all ranks, without it,
        each `LEAST_LOSS` or more.
        """

    def look_back(self, means: Tensor) -> None:
        """Learns from what the step made of its losses, [domains]; they are as `means` there."""
        raise NotImplementedError

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...
