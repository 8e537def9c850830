"""What a controller is rewarded with, and what the reward is compared to."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def absolute_reward(accuracy: Tensor, cost: Tensor, target: Tensor, beta: float) -> Tensor:
    """TuNAS's absolute reward, `accuracy + beta * |cost / target - 1|`, [domains].

    cost: multiply-adds or milliseconds of the paths.

    Source: Bender et al., CVPR 2020; beta below zero (their code: -0.10).
    """
    return accuracy + beta * (cost / target - 1).abs()


class Baseline(nn.Module):
    """Zero-debiased exponential moving average of the rewards, per domain.

    Updated with a step's rewards before they are compared to it, as in TuNAS.
    """

    average: Tensor
    updates: Tensor

    def __init__(self, num_domains: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("average", torch.zeros(num_domains))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def advantage(self, reward: Tensor) -> Tensor:
        """Updates the average with `reward` [domains] and gives reward - average."""
        self.average.lerp_(reward, 1 - self.momentum)
        self.updates += 1
        return reward - self.average / (1 - self.momentum**self.updates)


def leave_one_out(reward: Tensor) -> Tensor:
    """Rewards [paths, domains] less the mean of the other paths', on the same images.

    Source: Kool et al., 2019, 'Buy 4 REINFORCE samples, get a baseline for free'.
    """
    count = len(reward)
    return (reward - reward.mean(0)) * count / (count - 1)
