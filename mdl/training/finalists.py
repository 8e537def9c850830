"""The last round of a search: a few networks trained from scratch, side by side, the best kept.

A super-network tells blocks apart, but not companies: its weights are those of all domains,
whichever of them share a node in the network that is derived. Only networks trained as they will
be show what sharing gains and costs. All finalists see the same images; at the end of each round
the half that answers held-out images worse is dropped.

For a domain that is added to a trained network they begin with what is trained, which rests.

Source: successive halving (Jamieson and Talwalkar, AISTATS 2016).
Differs from it: rounds have equally many steps, whoever is left.
Not given in the MPNAS paper as known here; ours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from mdl.data.transforms import Batch, images_of
from mdl.networks.multipath import MultiPathNetwork
from mdl.space.architecture import Architecture
from mdl.training.average import WeightAverage
from mdl.training.base import MultiDomainModule
from mdl.training.gradient_graph import GradientGraph, can_capture
from mdl.training.optim import clip_gradients
from mdl.training.ranks import mean_gradients_over_ranks, mean_over_ranks

_log = logging.getLogger(__name__)

_WINDOW = 0.1  # part of a round, its end, in which held-out images are answered


class _Networks(nn.ModuleList):
    """Networks of the same domains, in the place of the one that other modules train."""

    def __init__(self, networks: Sequence[MultiPathNetwork]) -> None:
        super().__init__(networks)
        self.domains, self.num_classes = networks[0].domains, networks[0].num_classes


class FinalistsModule(MultiDomainModule):
    """Trains several derived networks on the same batches and halves them until one is left.

    What rests in a network (`requires_grad`) stays as it is.

    networks: the derived ones. architectures: what they were derived from, in the same order.
    ema_decay: of the average of each one's weights, which answers held-out images.
    cuda_graph: whether a GPU is given each network's passes as a whole, those of all side by side.
    """

    reduces_gradients = True

    remaining: Tensor
    right: Tensor

    def __init__(
        self,
        networks: Sequence[MultiPathNetwork],
        architectures: Sequence[Architecture],
        *,
        ema_decay: float,
        cuda_graph: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(cast(MultiPathNetwork, _Networks(networks)), **base)
        self.networks, self.architectures = tuple(networks), tuple(architectures)
        self.averages = tuple(
            WeightAverage(network, ema_decay, lambda: self.global_step) for network in networks
        )
        self.averaged = nn.ModuleList(self.averages)  # registers them
        self.cuda_graph = cuda_graph
        # of the networks that are left
        self._graphs: dict[int, GradientGraph[tuple[Tensor, Tensor]]] = {}
        count = len(self.architectures)
        self.register_buffer("remaining", torch.ones(count, dtype=torch.bool))
        # part of a batch that was answered right, summed over the window's batches
        self.register_buffer("right", torch.zeros(count, len(self.domains)))
        self.answered = 0  # batches of the window so far; 0 after its end, while `right` stays

    @property
    def phase(self) -> str:
        return "search: finalists"

    def inherit(self, backbone: MultiPathNetwork) -> None:
        """Begins with the weights of another network (`MultiPathNetwork.inherit`), each of them."""
        for network, average in zip(self.networks, self.averages, strict=True):
            network.inherit(backbone)
            average.module.load_state_dict(network.state_dict())

    def images_per_step(self, batch: Any) -> int:
        return super().images_per_step(batch["train"]) * int(self.remaining.sum())

    @property
    def num_rounds(self) -> int:
        return max(math.ceil(math.log2(len(self.architectures))), 1)

    def round_ends(self, step: int) -> bool:
        """Whether a round's last step is the one that makes `step` steps."""
        return step in {
            round(self.total_steps * (at + 1) / self.num_rounds) for at in range(self.num_rounds)
        }

    @property
    def window(self) -> int:
        """Steps at the end of a round in which held-out images are answered."""
        return math.ceil(_WINDOW * self.total_steps / self.num_rounds)

    def answers(self, step: int) -> bool:
        """Whether the step that makes `step` steps is in such a window."""
        return any(self.round_ends(step + ahead) for ahead in range(self.window))

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> None:
        left = [int(at) for at in self.remaining.nonzero()]
        self.train_on(batch["train"], left)
        if self.answers(self.global_step):
            self.answer(batch["held_out"], left)
        if self.round_ends(self.global_step):
            self.halve(left)
        if self.records_now:
            self.record_training()

    def train_on(self, batch: Batch, left: Sequence[int]) -> None:
        """One step of each network that is left; of the losses their mean is noted."""
        noted = torch.zeros_like(self.domain_losses)
        found = self._gradients(batch, left)
        for losses, _ in found:
            noted += losses / len(left)
        self.domain_losses.copy_(mean_over_ranks(noted))
        self.note_faults(torch.stack([norm for _, norm in found]).sum())
        optimizer: Any = self.optimizers()
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        for at in left:
            self.averages[at].update_parameters(self.networks[at])

    def _gradients(self, batch: Batch, left: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Sets the gradients of the networks that are left; of each its losses and their norm."""
        if not self.cuda_graph or not can_capture(self.device):
            return [self._gradients_of(at, batch) for at in left]
        self._graphs = {
            at: self._graphs.get(at) or GradientGraph(partial(self._gradients_of, at))
            for at in left
        }
        for graph in self._graphs.values():
            graph.launch(batch)
        return [graph.result() for graph in self._graphs.values()]

    def _gradients_of(self, at: int, batch: Batch) -> tuple[Tensor, Tensor]:
        network = self.networks[at]
        network.zero_grad()
        losses = self.losses(network(images_of(batch), self.architectures[at].paths), batch)
        self.manual_backward((self.domain_weights * losses).sum())
        mean_gradients_over_ranks(network.parameters())
        return losses.detach(), clip_gradients(network.parameters(), self.clip_norm)

    @torch.no_grad()
    def answer(self, batch: Batch, left: Sequence[int]) -> None:
        """Adds each finalist's accuracy on a held-out batch to what it is judged by."""
        if self.answered == 0:
            self.right.zero_()
        self.answered += 1
        images = images_of(batch)
        for at in left:
            average = self.averages[at].module.eval()
            logits = average(images, self.architectures[at].paths)
            self.right[at] += mean_over_ranks(self.accuracies(logits, batch))

    def halve(self, left: Sequence[int]) -> None:
        """Drops the half of the finalists whose mean over domains is worse."""
        means = self.right[list(left)].mean(1)
        kept = [left[int(at)] for at in means.argsort(descending=True)[: -(-len(left) // 2)]]
        _log.info("%d of %d finalists stay: numbers %s", len(kept), len(left), sorted(kept))
        for at in set(left) - set(kept):
            self.networks[at].zero_grad()  # it rests from here on
        self.remaining.zero_()
        self.remaining[kept] = True
        self.record({"search/accuracy": self.right[kept[0]] / self.answered})
        self.answered = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["answered"] = self.answered

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.answered = checkpoint.get("answered", 0)  # those of earlier versions lack it

    def architecture(self, source: Mapping[str, Any]) -> Architecture:
        """That of the best finalist."""
        best = int(self.right.mean(1).where(self.remaining, -torch.inf).argmax())
        found = self.architectures[best]
        return Architecture(found.space, found.paths, {**source, "finalist": best})
