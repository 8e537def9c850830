"""Batch norm over the images of all ranks, for several domains in one call.

`nn.SyncBatchNorm` refuses CPU tensors and knows one set of statistics; here each domain has its
own, and all of a node's domains share each reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F


def several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def normalise_over_ranks(
    x: Tensor, counts: Sequence[int], weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, C, H, W], domain after domain, so many of each -> normal x, mean and variance.

    weight, bias, mean and (unbiased) variance: [domains, C]. All ranks call it with the same
    domains; how many images they have of each may differ.
    """
    normal, mean, variance = _OverRanks.apply(x, tuple(counts), weight, bias, eps)
    return normal, mean, variance


class _OverRanks(torch.autograd.Function):
    """Two reductions forward (of means, of squares about the common mean), one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, counts: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = x.split(counts)
        size = x.shape[2] * x.shape[3]
        own = torch.tensor(counts, device=x.device, dtype=torch.float32)[:, None] * size
        stats = [torch.var_mean(part.float(), (0, 2, 3), correction=0) for part in parts]
        own_variance = torch.stack([of for of, _ in stats])
        own_mean = torch.stack([of for _, of in stats])
        sums = torch.cat([own_mean * own, own], 1)
        dist.all_reduce(sums)
        total = sums[:, -1:]
        mean = sums[:, :-1] / total
        squares = own * (own_variance + (own_mean - mean) ** 2)
        dist.all_reduce(squares)
        variance = squares / total
        normal = torch.cat(
            [
                F.batch_norm(part, mean[i], variance[i], weight[i], bias[i], False, 0.0, eps)
                for i, part in enumerate(parts)
            ]
        )
        inverse = (variance + eps).rsqrt()
        ctx.counts = counts
        ctx.save_for_backward(x, weight, mean, inverse, total)
        unbiased = squares / (total - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return normal, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        gradient = gradients[0]
        parts = list(zip(gradient.split(ctx.counts), x.split(ctx.counts), strict=True))
        normal = [
            (part.float() - _shaped(mean[i])) * _shaped(inverse[i])
            for i, (_, part) in enumerate(parts)
        ]
        by_bias = torch.stack([g.float().sum((0, 2, 3)) for g, _ in parts])
        by_weight = torch.stack(
            [(g.float() * of).sum((0, 2, 3)) for (g, _), of in zip(parts, normal, strict=True)]
        )
        both = torch.stack([by_bias, by_weight])
        dist.all_reduce(both)
        means = both / total
        scale = weight * inverse
        by_x = [
            _shaped(scale[i]) * (g.float() - _shaped(means[0, i]) - of * _shaped(means[1, i]))
            for i, ((g, _), of) in enumerate(zip(parts, normal, strict=True))
        ]
        # those of weight and bias are of the rank's images, as all parameters' are
        return torch.cat(by_x).to(x.dtype), None, by_weight, by_bias, None


def _shaped(row: Tensor) -> Tensor:
    return row[None, :, None, None]
