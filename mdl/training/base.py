"""What search and retraining have in common: domains, their losses and weights, and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.func import functional_call

from mdl.data.transforms import Batch, images_of, labels_of
from mdl.errors import UserError
from mdl.networks.multipath import MultiPathNetwork
from mdl.space.search_space import Path
from mdl.training.balancer import LEAST_LOSS, Balancer
from mdl.training.logits_table import LogitsTable
from mdl.training.optim import clip_gradients, set_scheduled_rate, warmup_cosine, weight_optimizer
from mdl.training.ranks import (
    check_equal_over_ranks,
    mean_gradients_over_ranks,
    mean_over_ranks,
)

_REMEDY = (
    "The last good checkpoint is kept, and the same command goes on from it. If it comes again, "
    "start a new run with name=... and a lower optimizer.learning_rate or optimizer.clip_norm, or "
    "look at the domain's images."
)


class MultiDomainModule(L.LightningModule):
    """Trains a multi-path network on the weighted sum of its domains' losses.

    `domain_weights` [domains], of mean one, is what a balancer sets, or a callback such as ABDP;
    `domain_losses` [domains] holds the losses of the step before. `trained`: the domains that have
    losses; the others rest.

    network: what is trained.
    learning_rate: peak of the schedule; weight_decay: on convolutions and heads.
    warmup_fraction: part of all steps in which the learning rate rises.
    total_steps: length of the schedule, in steps.
    label_smoothing: of the training losses.
    clip_norm: greatest norm of the gradients; None: not clipped.
    record_interval: steps between two records of the training quantities.
    balancer: sets the weights of each step; None: they stay as they are, or a callback sets them.
    """

    norm_momentum = True  # see `weight_optimizer`
    reduces_gradients = False  # over ranks, where no DDP does (`PathsStrategy`)

    domain_weights: Tensor
    domain_losses: Tensor
    nonfinite_step: Tensor
    nonfinite_gradient_step: Tensor

    def __init__(
        self,
        network: MultiPathNetwork,
        *,
        total_steps: int,
        learning_rate: float,
        weight_decay: float,
        warmup_fraction: float,
        label_smoothing: float,
        clip_norm: float | None,
        record_interval: int,
        balancer: Balancer | None = None,
    ) -> None:
        super().__init__()
        # The order within a step is ours to say: weights, then what follows from them, then
        # records, all before the checkpoint. One batch is one step.
        self.automatic_optimization = False
        self.network = network
        self.domains: Sequence[str] = network.domains
        self.num_classes = network.num_classes
        self.trained: Sequence[str] = network.domains
        self.total_steps = total_steps
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup_steps = round(total_steps * warmup_fraction)
        self.label_smoothing, self.clip_norm = label_smoothing, clip_norm
        self.record_interval = record_interval
        self.records: dict[str, float] = {}
        self.balancer = balancer
        self._balancer_state: dict[str, Any] | None = None  # of a checkpoint, on its way there
        count = len(self.domains)
        self.register_buffer("domain_weights", torch.ones(count))
        self.register_buffer("domain_losses", torch.zeros(count), persistent=False)
        # step at which a domain's loss was first not finite, -1 for never: looked at only now
        # and then, because looking waits for the device
        self.register_buffer("nonfinite_step", torch.full((count,), -1), persistent=False)
        self.register_buffer("nonfinite_gradient_step", torch.tensor(-1), persistent=False)

    @property
    def phase(self) -> str:
        """What the module is doing, for a progress bar."""
        return "training"

    def images_per_step(self, batch: Any) -> int:
        """Training images of all domains in a batch."""
        return sum(len(labels) for _, labels in batch.values())

    def weight_step(self, batch: Batch, paths: Mapping[str, Path]) -> None:
        """One optimizer step on the paths; nodes off them get no gradient and do not move.

        Of tied blocks the part off the paths gets a zero gradient: momentum and decay move it.
        """
        self.note_faults(self.set_gradients(batch, paths))
        optimizer: Any = self.optimizers()
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if self.balancer is not None and self.balancer.looks_back:
            again = mean_over_ranks(self.losses_again(batch, paths))
            self.balancer.look_back(again.clamp_min(LEAST_LOSS))

    def set_gradients(self, batch: Batch, paths: Mapping[str, Path]) -> Tensor:
        """The gradients of a batch, clipped; gives their norm before that. Waits for no device."""
        optimizer: Any = self.optimizers()
        logits = self.network(images_of(batch), paths)
        objective = self.weighted_sum(self.losses(logits, batch))
        optimizer.zero_grad()
        self.manual_backward(objective)
        if self.reduces_gradients:
            mean_gradients_over_ranks(self.network.parameters())
        return clip_gradients(self.network.parameters(), self.clip_norm)

    @torch.no_grad()
    def losses_again(self, batch: Batch, paths: Mapping[str, Path]) -> Tensor:
        """Losses of a training batch, [domains]; running statistics do not count it again."""
        statistics = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        passed = functional_call(self.network, statistics, (images_of(batch), paths))
        return self.losses(passed, batch)

    def losses(self, logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Cross entropy of each domain, [domains]; 0 of one that the batch lacks."""
        in_order = {domain: logits[domain] for domain in self.domains if domain in logits}
        found = LogitsTable(in_order).losses(labels_of(batch), self.label_smoothing)
        if len(in_order) == len(self.domains):
            return found
        # no tensor of the host's: it could not be copied while a CUDA graph is captured
        known, none = dict(zip(in_order, found.unbind(), strict=True)), found.new_zeros(())
        return torch.stack([known.get(domain, none) for domain in self.domains])

    def accuracies(self, logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Share of right answers in a batch, [domains]."""
        in_order = {domain: logits[domain] for domain in self.domains}
        return LogitsTable(in_order).accuracies(labels_of(batch))

    def weighted_sum(self, losses: Tensor) -> Tensor:
        """The one objective; notes the losses for balancers."""
        self.domain_losses.copy_(mean_over_ranks(losses.detach()))
        if self.balancer is not None:
            means = self.domain_losses.clamp_min(LEAST_LOSS)
            self.domain_weights.copy_(self.balancer.weigh(losses, means))
        return (self.domain_weights * losses).sum()

    def note_faults(self, norm: Tensor) -> None:
        """Notes where the step's losses, or the norm of its gradients, are not finite."""
        self._note_nonfinite(self.nonfinite_step, self.domain_losses)
        self._note_nonfinite(self.nonfinite_gradient_step, norm)

    def _note_nonfinite(self, noted: Tensor, values: Tensor) -> None:
        """Notes the step at which a value was first not finite, without waiting for the device."""
        noted.masked_fill_((noted < 0) & ~values.isfinite(), self.global_step)

    def check_finite(self) -> None:
        """Raises UserError naming the step, and the domain whose loss was not finite."""
        noted = zip(self.nonfinite_step.tolist(), self.domains, strict=True)
        faults = [(step, f"loss of domain '{domain}'") for step, domain in noted if step >= 0]
        if (step := int(self.nonfinite_gradient_step)) >= 0:
            faults.append((step, "norm of the gradients"))
        if faults:
            # a loss before the gradients of its step, which it made what they are
            step, what = min(faults, key=lambda fault: fault[0])
            raise UserError(f"The {what} was not finite at step {step}. {_REMEDY}")

    def check_ranks(self) -> None:
        """Raises RuntimeError where ranks have come to hold different weights."""
        held = dict(self.named_parameters()) | {"domain_weights": self.domain_weights}
        check_equal_over_ranks(held, self.global_step)

    def on_train_start(self) -> None:
        # a run that goes on with more steps than it began with follows the longer schedule
        schedule: Any = self.lr_schedulers()
        set_scheduled_rate(schedule)
        if self.balancer is not None:
            # only now is the network on its device, where the balancer has to follow it
            self.balancer.begin(self.network)
            if self._balancer_state is not None:
                self.balancer.load_state_dict(self._balancer_state)
                self._balancer_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["warmup_steps"] = self.warmup_steps
        if self.balancer is not None:
            checkpoint["balancer"] = self.balancer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # what was a warm-up stays one when a run goes on with more steps
        self.warmup_steps = checkpoint["warmup_steps"]
        self._balancer_state = checkpoint.get("balancer")

    def configure_optimizers(self) -> Any:
        optimizer = weight_optimizer(
            self.network, self.learning_rate, self.weight_decay, self.norm_momentum
        )
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @property
    def trained_rows(self) -> slice | list[int]:
        """Where the trained domains stand among all."""
        if len(self.trained) == len(self.domains):
            return slice(None)  # a list would have to be brought to the device
        return [row for row, domain in enumerate(self.domains) if domain in self.trained]

    def record_training(self, also: Mapping[str, Tensor] | None = None) -> None:
        """Records losses and weights of the trained domains, and what else is given of them."""
        rows = self.trained_rows
        noted = {"train/loss": self.domain_losses, "train/domain_weight": self.domain_weights}
        noted = {quantity: of[rows] for quantity, of in noted.items()}
        self.record(noted | dict(also or {}), domains=self.trained)

    @property
    def records_now(self) -> bool:
        """Whether the step that just ended is one whose quantities are recorded."""
        return self.global_step % self.record_interval == 0 or self.global_step == self.total_steps

    def record(
        self,
        quantities: Mapping[str, Tensor],
        log: bool = True,
        domains: Sequence[str] | None = None,
    ) -> None:
        """Keeps {'split/quantity': [domains]} as 'split/quantity/domain', and logs it.

        Adds the mean over domains. One transfer from the device for all of them.
        domains: those that the quantities are of; None: all.
        """
        names = self.domains if domains is None else domains
        # reshape: torchmetrics gives the one domain's value without its dimension
        table = torch.stack(
            [values.detach().float().reshape(-1) for values in quantities.values()]
        ).tolist()
        named: dict[str, float] = {}
        for quantity, row in zip(quantities, table, strict=True):
            named |= {f"{quantity}/{d}": v for d, v in zip(names, row, strict=True)}
            named[f"{quantity}/mean"] = sum(row) / len(row)
        self.records |= named
        for logger in self.loggers if log else ():
            logger.log_metrics(named, self.global_step)
