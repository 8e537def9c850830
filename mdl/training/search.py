"""The search: weights of a super-network and one controller per domain, in turns.

One step is one batch of every domain:
1. weights: a path per domain is drawn from its controller (uniformly during the warm-up); one
   optimizer step on the weighted sum of the domains' losses;
2. controllers, after the warm-up: the held-out batch goes down the same paths without gradient;
   each domain's reward against its baseline, one REINFORCE step.

With `frozen` the super-network's weights rest and every step is a controller step: controllers
are searched again on a trained super-network, for another target, in a fraction of the time.

Source of the alternation, reward and baseline: TuNAS (Bender et al., CVPR 2020), which MPNAS
(Wang et al., WACV 2021) builds on. Not given in the MPNAS paper as known here, and so our own:
the constants, the common warm-up path, the sharing bonus, targets of the whole network, several
paths a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mdl.data.transforms import Batch, images_of
from mdl.networks.controller import Controllers, on_device
from mdl.networks.cost import CostTable
from mdl.networks.latencies import PathLatencies
from mdl.networks.multipath import MultiPathNetwork
from mdl.networks.sizing import ANY_SIZE, SizeTable, Target, most_likely_choices
from mdl.space.architecture import Architecture
from mdl.training.base import MultiDomainModule
from mdl.training.ranks import mean_over_ranks
from mdl.training.reward import Baseline, absolute_reward, leave_one_out

# Of the price of a size: what it is at twice the target at once, and by what it rises each step.
# The first alone leaves a rest; the second alone goes on rising after the size is right, and
# presses it far below the target.
_PRICE, _PRICE_RATE = 1.0, 0.005


class SearchModule(MultiDomainModule):
    """Alternates weight and controller steps.

    network: the super-network. controllers: of its domains. cost: of its space.
    seed: of the paths drawn; they are a function of it, the step and the controllers.
    controller_learning_rate, controller_beta1: of the controllers' Adam.
    warmup_fraction_paths: part of all steps with uniformly drawn paths and resting controllers.
    warmup_common_path: whether the domains take one common path per step during the warm-up.
    paths_per_step: paths drawn per domain and controller step, all rewarded on the same images.
    With more than one a path's baseline is the mean of the others (leave-one-out), which takes
    away how hard the images are; with one it is the moving average of earlier rewards.
    beta: weight of the cost in the reward, below zero; target: wanted multiply-adds of a path,
    as a part of those of a uniformly drawn path.
    baseline_momentum: of the rewards' moving average.
    sharing: weight of the sharing bonus; 0 is the plain published form.
    sizes, target_size: wanted totals of the whole network. The controllers' objective has an
    augmented Lagrangian term for each (`size_penalty`), in the size expected of the controllers;
    the most likely paths of the wanted size are the result. Multiply-adds asked for so replace
    the reward's cost.
    frozen: whether the network's weights rest.
    latencies: of the space's blocks, with each domain's budget, which take the place of
    multiply-adds in the reward; the result's paths are then within their budgets.
    """

    def __init__(
        self,
        network: MultiPathNetwork,
        controllers: Controllers,
        cost: CostTable,
        sizes: SizeTable,
        *,
        seed: int,
        controller_learning_rate: float,
        controller_beta1: float,
        warmup_fraction_paths: float,
        warmup_common_path: bool,
        beta: float,
        target: float,
        baseline_momentum: float,
        sharing: float,
        paths_per_step: int = 1,
        target_size: Target = ANY_SIZE,
        frozen: bool = False,
        latencies: PathLatencies | None = None,
        **base: Any,
    ) -> None:
        super().__init__(network, **base)
        self.latencies = latencies
        self.controllers = controllers
        self.baseline = Baseline(len(self.domains), baseline_momentum)
        # outside Lightning, which would count its steps too
        self.controller_optimizer = torch.optim.Adam(
            controllers.parameters(), lr=controller_learning_rate, betas=(controller_beta1, 0.999)
        )
        self.seed, self.beta, self.sharing = seed, beta, sharing
        self.paths_per_step, self.frozen = paths_per_step, frozen
        self.delay = 0 if frozen else round(self.total_steps * warmup_fraction_paths)
        self.warmup_common_path = warmup_common_path
        self.register_buffer("choice_macs", cost.choices(), persistent=False)
        self.register_buffer("fixed_macs", cost.fixed(), persistent=False)
        self.register_buffer("target_macs", target * cost.mean_path_macs(), persistent=False)
        self.sizes, self.target_size = sizes, target_size
        # of parameters and multiply-adds; checkpoints of searches from before they were lack them
        self.register_buffer("multipliers", torch.zeros(2), persistent=False)
        if frozen:
            network.requires_grad_(False)
        self.search_records: dict[str, Tensor] = {}
        self._resumed: dict[str, Any] | None = None  # the optimizer's state, on its way there

    norm_momentum = False
    reduces_gradients = True

    choice_macs: Tensor
    fixed_macs: Tensor
    target_macs: Tensor
    multipliers: Tensor

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> None:
        step = self.global_step
        drawn = self.draw(step)
        if not self.frozen:
            self.weight_step(batch["train"], self.controllers.paths(drawn[0]))
        if step >= self.delay:
            self.controller_step(batch["held_out"], drawn)
        if self.records_now:
            self._record()

    def inherit(self, backbone: MultiPathNetwork) -> None:
        """Begins with the weights of another network (`MultiPathNetwork.inherit`)."""
        self.network.inherit(backbone)

    @property
    def phase(self) -> str:
        return "search: warm-up" if self.global_step < self.delay else "search: controllers"

    def images_per_step(self, batch: Any) -> int:
        return super().images_per_step(batch["held_out" if self.frozen else "train"])

    def draw(self, step: int) -> Tensor:
        """The paths of a step as choices, [paths, domains, layers]; the first trains weights."""
        if step < self.delay:
            return self.controllers.sample_start(self.seed, step, self.warmup_common_path)[None]
        draws = range(step * self.paths_per_step, (step + 1) * self.paths_per_step)
        return torch.stack([self.controllers.sample(self.seed, draw) for draw in draws])

    def controller_step(self, batch: Batch, drawn: Tensor) -> None:
        """One REINFORCE step on the rewards of the drawn paths."""
        reward = self.rewards_of(batch, drawn)
        if len(drawn) == 1:
            advantage = self.baseline.advantage(reward[0])[None]
        else:
            advantage = leave_one_out(reward)
        objective = self.controller_objective(drawn, advantage)
        self.controllers.logits.grad = torch.autograd.grad(objective, self.controllers.logits)[0]
        optimizer: Any = self.optimizers() if self.frozen else self.controller_optimizer
        optimizer.step()
        self._raise_multipliers()

    def rewards_of(self, batch: Batch, drawn: Tensor) -> Tensor:
        """Those of all drawn paths, [paths, domains]; their means are what is recorded."""
        rewards, records = [], []
        for choices in drawn:
            rewards.append(self.rewards(batch, choices))
            records.append(self.search_records)
        self.search_records = {
            quantity: torch.stack([of[quantity] for of in records]).mean(0)
            for quantity in records[0]
        }
        return torch.stack(rewards)

    @torch.no_grad()
    def rewards(self, batch: Batch, choices: Tensor) -> Tensor:
        """Accuracy on the held-out batch against the cost of the path, [domains]."""
        paths = self.controllers.paths(choices)
        logits = self.network(images_of(batch), paths)
        accuracy = mean_over_ranks(self.accuracies(logits, batch))
        macs = self.path_macs(choices)
        reward = accuracy
        self.search_records = {"search/accuracy": accuracy, "search/macs": macs}
        if self.latencies is not None:
            ms = self.latencies.of(choices)
            self.search_records["search/milliseconds"] = ms
            reward = absolute_reward(accuracy, ms, self.latencies.budget, self.beta)
        elif self.target_size.macs is None:
            reward = absolute_reward(accuracy, macs, self.target_macs, self.beta)
        self.search_records["search/reward"] = reward
        return reward

    @torch.no_grad()
    def _raise_multipliers(self) -> None:
        """One step of dual ascent: the price of what is too large rises."""
        if self.target_size:
            self.multipliers += _PRICE_RATE * self.size_misses()

    def path_macs(self, choices: Tensor) -> Tensor:
        """Multiply-adds of the drawn paths, [domains]."""
        chosen = on_device(choices, self.choice_macs.device)[:, :, None]
        return self.choice_macs.gather(-1, chosen).sum((1, 2)) + self.fixed_macs

    def controller_objective(self, drawn: Tensor, advantage: Tensor) -> Tensor:
        """-sum over domains of (advantage * log p(path) + sharing * agreement), plus size.

        drawn [paths, domains, layers], advantage [paths, domains]; the mean over paths.
        """
        log_p = torch.stack([self.controllers.log_probability(choices) for choices in drawn])
        objective = -(advantage * log_p).sum(-1).mean()
        if self.sharing:
            objective = objective - self.sharing * self.controllers.agreement().sum()
        if self.target_size:
            objective = objective + self.size_penalty()
        return objective

    def size_penalty(self) -> Tensor:
        """sum over sizes of (multiplier * miss + price / 2 * miss ** 2).

        An augmented Lagrangian; a miss is expected size / target - 1.
        """
        misses = self.size_misses()
        return (self.multipliers * misses + _PRICE / 2 * misses**2).sum()

    def size_misses(self) -> Tensor:
        """By what parts the expected size misses the target, [2]; 0 where none is set."""
        probabilities = self.controllers.log_probabilities().exp()
        return self.target_size.misses(self.sizes.expected(probabilities))

    def architecture(self, source: Mapping[str, Any]) -> Architecture:
        """Each domain's most likely path; with a target or budget, the most likely within it."""
        log_p = self.controllers.log_probabilities()
        if self.latencies is None:
            choices = self._most_likely(log_p)
        else:
            choices = self.latencies.likely_within(log_p, self._most_likely)
        return Architecture(self.controllers.space, self.controllers.paths(choices), source)

    def _most_likely(self, log_p: Tensor) -> Tensor:
        """The most likely choices [domains, layers], of the target's size where there is one."""
        if self.target_size:
            return most_likely_choices(log_p, self.sizes, self.target_size)
        return log_p.argmax(-1)

    def configure_optimizers(self) -> Any:
        return self.controller_optimizer if self.frozen else super().configure_optimizers()

    def _record(self) -> None:
        of_controllers = {"search/entropy": self.controllers.entropy()} | self.search_records
        if self.frozen:
            self.record(of_controllers)
        else:
            self.record_training(of_controllers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["delay"], checkpoint["multipliers"] = self.delay, self.multipliers
        if not self.frozen:  # Lightning saves its own
            checkpoint["controller_optimizer"] = self.controller_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.delay = checkpoint["delay"]
        if "multipliers" in checkpoint:
            self.multipliers.copy_(checkpoint["multipliers"])
        self._resumed = checkpoint.get("controller_optimizer")

    def on_train_start(self) -> None:
        if not self.frozen:
            super().on_train_start()
        if self._resumed is not None:
            # only now are the controllers on their device, where the state has to follow them
            self.controller_optimizer.load_state_dict(self._resumed)
            self._resumed = None
