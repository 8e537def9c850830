"""Optimizers and schedules of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mdl.networks.blocks import norm_parameters

BETA1, BETA2 = 0.9, 0.999


def weight_optimizer(
    network: nn.Module, learning_rate: float, weight_decay: float, norm_momentum: bool = True
) -> Optimizer:
    """AdamW of what is not frozen; weight decay on convolutions and heads, not norms and biases.

    norm_momentum: whether the norms' steps have momentum. In a super-network they must not: it
    would go on moving the rows of domains that a step does not lead through the node.
    """
    norms = [parameter for parameter in norm_parameters(network) if parameter.requires_grad]
    known = {id(parameter) for parameter in norms}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
    beta1 = BETA1 if norm_momentum else 0.0
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": norms, "weight_decay": 0.0, "betas": (beta1, BETA2)},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(BETA1, BETA2), fused=True)


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up, then half a cosine down to zero at `total_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return LambdaLR(optimizer, factor)


def set_scheduled_rate(schedule: LambdaLR) -> None:
    """Sets the optimizer's rates to what the schedule says of its present step.

    A resumed optimizer holds the rates that were saved, by a schedule that may have been shorter.
    """
    groups = zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    )
    for group, rate, factor in groups:
        group["lr"] = rate * factor(schedule.last_epoch)


def clip_gradients(parameters: Iterable[nn.Parameter], norm: float | None) -> Tensor:
    """Scales the gradients down to a global `norm` (None leaves them); gives their norm before."""
    used = [parameter for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm([p.grad for p in used if p.grad is not None])
    if norm is not None:
        nn.utils.clip_grads_with_norm_(used, norm, total)
    return total
