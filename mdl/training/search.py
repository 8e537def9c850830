"""The search: weights of a super-network and one controller per domain, in turns.

One step is one batch of every domain:
1. weights: a path per domain is drawn from its controller (uniformly during the warm-up); one
   optimizer step on the weighted sum of the domains' losses;
2. controllers, after the warm-up: the held-out batch goes down the same paths without gradient;
   each domain's reward against its baseline, one REINFORCE step.

Source of the alternation, reward and baseline: TuNAS (Bender et al., CVPR 2020), which MPNAS
(Wang et al., WACV 2021) builds on. Not given in the MPNAS paper as known here, and so our own:
the constants, the common warm-up path, the sharing bonus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mdl.data.transforms import Batch
from mdl.errors import UserError
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable
from mdl.networks.multipath import MultiPathNetwork
from mdl.space.architecture import Architecture
from mdl.space.search_space import Path
from mdl.training.base import MultiDomainModule
from mdl.training.reward import Baseline, absolute_reward


class SearchModule(MultiDomainModule):
    """Alternates weight and controller steps.

    network: the super-network. controllers: of its domains. cost: of its space.
    seed: of the paths drawn; they are a function of it, the step and the controllers.
    controller_learning_rate, controller_beta1: of the controllers' Adam.
    warmup_fraction_paths: part of all steps with uniformly drawn paths and resting controllers.
    warmup_common_path: whether the domains take one common path per step during the warm-up.
    beta: weight of the cost in the reward, below zero; target: wanted multiply-adds of a path,
    as a part of those of a uniformly drawn path.
    baseline_momentum: of the rewards' moving average.
    sharing: weight of the sharing bonus; 0 is the plain published form.
    """

    def __init__(
        self,
        network: MultiPathNetwork,
        controllers: Controllers,
        cost: CostTable,
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
        **base: Any,
    ) -> None:
        super().__init__(network, **base)
        self.controllers = controllers
        self.baseline = Baseline(len(self.domains), baseline_momentum)
        # outside Lightning, which would count its steps too
        self.controller_optimizer = torch.optim.Adam(
            controllers.parameters(), lr=controller_learning_rate, betas=(controller_beta1, 0.999)
        )
        self.seed, self.beta, self.sharing = seed, beta, sharing
        self.delay = round(self.total_steps * warmup_fraction_paths)
        self.warmup_common_path = warmup_common_path
        self.register_buffer("choice_macs", cost.choices(), persistent=False)
        self.register_buffer("fixed_macs", cost.fixed(), persistent=False)
        self.register_buffer("target_macs", target * cost.mean_path_macs(), persistent=False)
        self.search_records: dict[str, Tensor] = {}
        self._resumed: dict[str, Any] | None = None  # the optimizer's state, on its way there

    norm_momentum = False

    choice_macs: Tensor
    fixed_macs: Tensor
    target_macs: Tensor

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            raise UserError(
                f"A search runs on one device so far; this one was given "
                f"{self.trainer.world_size}. Set trainer.devices=1 and trainer.num_nodes=1."
            )

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> None:
        step = self.global_step
        choices = self.draw(step)
        paths = self.controllers.paths(choices)
        self.weight_step(batch["train"], paths)
        if step >= self.delay:
            self.controller_step(batch["held_out"], choices, paths)
        if self.records_now:
            self._record()

    @property
    def phase(self) -> str:
        return "search: warm-up" if self.global_step < self.delay else "search: controllers"

    def images_per_step(self, batch: Any) -> int:
        return super().images_per_step(batch["train"])

    def draw(self, step: int) -> Tensor:
        """The paths of a step as choices, [domains, layers]."""
        if step < self.delay:
            return self.controllers.sample_uniform(self.seed, step, self.warmup_common_path)
        return self.controllers.sample(self.seed, step)

    def controller_step(self, batch: Batch, choices: Tensor, paths: Mapping[str, Path]) -> None:
        """One REINFORCE step on the rewards of the drawn paths."""
        reward = self.rewards(batch, choices, paths)
        objective = self.controller_objective(choices, self.baseline.advantage(reward))
        self.controllers.logits.grad = torch.autograd.grad(objective, self.controllers.logits)[0]
        self.controller_optimizer.step()

    @torch.no_grad()
    def rewards(self, batch: Batch, choices: Tensor, paths: Mapping[str, Path]) -> Tensor:
        """Accuracy on the held-out batch against the cost of the path, [domains]."""
        logits = self.network({d: images for d, (images, _) in batch.items()}, paths)
        accuracy = self.accuracies(logits, batch)
        macs = self.path_macs(choices)
        reward = absolute_reward(accuracy, macs, self.target_macs, self.beta)
        self.search_records = {
            "search/accuracy": accuracy,
            "search/reward": reward,
            "search/macs": macs,
        }
        return reward

    def path_macs(self, choices: Tensor) -> Tensor:
        """Multiply-adds of the drawn paths, [domains]."""
        chosen = choices.to(self.choice_macs.device)[:, :, None]
        return self.choice_macs.gather(-1, chosen).sum((1, 2)) + self.fixed_macs

    def controller_objective(self, choices: Tensor, advantage: Tensor) -> Tensor:
        """-sum over domains of (advantage * log p(path) + sharing * agreement)."""
        objective = -(advantage * self.controllers.log_probability(choices)).sum()
        if self.sharing:
            objective = objective - self.sharing * self.controllers.agreement().sum()
        return objective

    def architecture(self, source: Mapping[str, Any]) -> Architecture:
        """Each domain's most likely path."""
        return Architecture(self.controllers.space, self.controllers.best_paths(), source)

    def _record(self) -> None:
        self.record(
            {
                "train/loss": self.domain_losses,
                "train/domain_weight": self.domain_weights,
                "search/entropy": self.controllers.entropy(),
            }
            | self.search_records
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["delay"] = self.delay
        checkpoint["controller_optimizer"] = self.controller_optimizer.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.delay = checkpoint["delay"]
        self._resumed = checkpoint["controller_optimizer"]

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._resumed is not None:
            # only now are the controllers on their device, where the state has to follow them
            self.controller_optimizer.load_state_dict(self._resumed)
            self._resumed = None
