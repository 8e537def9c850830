"""The best of some random networks, by the same reward on the same super-network.

What controllers have to beat: as many forward passes, no learning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdl.data.order import Integers, permutation, stable_key
from mdl.data.transforms import Batch
from mdl.space.architecture import Architecture
from mdl.space.search_space import Path
from mdl.training.search import SearchModule


class RandomSearchModule(SearchModule):
    """Rewards given networks in turns on a frozen super-network, and takes the best.

    candidates: of which each is domain -> path. Every one is rewarded as often; its reward is the
    mean over domains and times of what it is over the mean of a step's candidates, all of which
    see the same images.
    """

    candidates: Tensor
    reward_sums: Tensor
    times: Tensor

    def __init__(self, *parts: Any, candidates: Sequence[Mapping[str, Path]], **base: Any) -> None:
        super().__init__(*parts, frozen=True, **base)
        choices = torch.stack([self.controllers.choices(paths) for paths in candidates])
        self.register_buffer("candidates", choices, persistent=False)
        self.register_buffer("reward_sums", torch.zeros(len(choices)))
        self.register_buffer("times", torch.zeros(len(choices)))

    @property
    def phase(self) -> str:
        return "search: random networks"

    def turns(self, step: int) -> list[int]:
        """Which candidates a step rewards: all in turns, in another order each time round."""
        turns = range(step * self.paths_per_step, (step + 1) * self.paths_per_step)
        count = len(self.candidates)
        orders = {turn // count: self._order(turn // count) for turn in turns}
        return [int(orders[turn // count][turn % count]) for turn in turns]

    def _order(self, time: int) -> Integers:
        return permutation(stable_key(self.seed, "candidates", time), len(self.candidates))

    def draw(self, step: int) -> Tensor:
        return self.candidates[self.turns(step)]

    @torch.no_grad()
    def controller_step(self, batch: Batch, drawn: Tensor) -> None:
        rewards = self.rewards_of(batch, drawn).mean(1)
        for turn, reward in zip(self.turns(self.global_step), rewards, strict=True):
            self.reward_sums[turn] += reward - rewards.mean()
            self.times[turn] += 1
        optimizer: Any = self.optimizers()
        optimizer.step()  # of nothing: the controllers have no gradient; it counts the step

    @property
    def mean_rewards(self) -> Tensor:
        """Of each candidate, [candidates]; minus infinity of one whose turn never came."""
        return (self.reward_sums / self.times).nan_to_num(-torch.inf)

    def architecture(self, source: Mapping[str, Any]) -> Architecture:
        """The candidate of the best mean reward."""
        best = int(self.mean_rewards.argmax())
        paths = self.controllers.paths(self.candidates[best])
        return Architecture(self.controllers.space, paths, {**source, "candidate": best})
