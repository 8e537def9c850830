"""Batch norm of several domains in one call, each by its own images.

On a GPU the calls of a node's domains, one after the other, take longer to launch than to compute.
Compiled, one call is fused with what stands before and after it, where the domains' own, whose
results are put together, are not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# so many domains make one call faster than theirs one by one: on a GPU with three it was not, with
# ten it took half the time (docs/results/speed.md)
FEWEST_DOMAINS = 4


def normalise_together(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x [domains * n, C, H, W], domain after domain, n of each -> normal x, mean and variance.

    weight, bias, mean and (unbiased) variance: [domains, C]. In half precision statistics are of
    float32, as torch's own are.
    """
    normal, mean, variance = _Together.apply(x, weight, bias, eps)
    return normal, mean, variance


class _Together(torch.autograd.Function):
    """Statistics and normalisation in one pass over x each; so are both parts of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(x, len(weight))
        biased, mean = torch.var_mean(rows, 1, correction=0)
        inverse = (biased + eps).rsqrt()
        scale = weight * inverse
        normal = torch.addcmul((bias - mean * scale)[:, None], rows, scale[:, None])
        ctx.save_for_backward(x, weight, mean, inverse)
        unbiased = biased * (rows.shape[1] / (rows.shape[1] - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return _like(normal, x), mean, unbiased

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        rows, gradient = _rows(x, len(weight)), _rows(gradients[0], len(weight))
        count = rows.shape[1]
        by_bias = gradient.sum(1)
        by_weight = ((gradient * rows).sum(1) - mean * by_bias) * inverse
        # scale * (gradient - mean gradient - normal x * mean of gradient * normal x), of which
        # what belongs to x, and what to neither, are brought together
        scale = weight * inverse
        of_x = -scale * inverse * by_weight / count
        rest = -scale * by_bias / count - of_x * mean
        by_x = torch.addcmul(rest[:, None], rows, of_x[:, None])
        by_x = torch.addcmul(by_x, gradient, scale[:, None])
        return _like(by_x, x), by_weight, by_bias, None


def _rows(x: Tensor, domains: int) -> Tensor:
    """[domains * n, C, H, W] -> [domains, n * H * W, C]; a view where channels are last."""
    return x.permute(0, 2, 3, 1).reshape(domains, -1, x.shape[1]).float()


def _like(rows: Tensor, x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return rows.to(x.dtype).reshape(count, height, width, channels).permute(0, 3, 1, 2)
