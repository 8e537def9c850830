"""What a node computes: convolutions, squeeze-excite, and batch norm per domain.

A node is called once for all domains that visit it. Their images are interleaved: row
`i * G + g` of the input is image i of the group's domain g, so that [n * G, C, H, W] can be
viewed, without a copy, as [n, G * C, H, W], and batch norm per domain is one call.

Names of layers as in timm: conv_pw (expansion), conv_dw (depthwise), conv_pwl (projection).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdl.space.search_space import Block, Layer

BATCH_NORM_MOMENTUM = 0.1
BATCH_NORM_EPS = 1e-5
SQUEEZE_RATIO = 0.25

Activation = Callable[[Tensor], Tensor]
Norm = Callable[[int], "DomainBatchNorm | SharedBatchNorm"]

_ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "hardswish": F.hardswish}


def domain_key(domain: str) -> str:
    """A domain's name in a module: nn.Module has attributes of its own ('train', 'type')."""
    return f"@{domain}"


class DomainBatchNorm(nn.Module):
    """Batch norm with statistics and affine per domain, for a node's users only.

    A domain's output does not depend on which other domains visit the node.

    running: whether running statistics are kept and used in evaluation; a super-network,
    whose paths change at every step, normalises by the batch at all times (as TuNAS does).
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, width: int, users: Sequence[str], running: bool) -> None:
        super().__init__()
        self.users = tuple(users)
        # One parameter per domain, not one table: a domain that does not visit the node in a
        # step must get no gradient, or the optimizer's momentum would move it.
        self.weight = nn.ParameterDict(
            {domain_key(user): nn.Parameter(torch.ones(width)) for user in users}
        )
        self.bias = nn.ParameterDict(
            {domain_key(user): nn.Parameter(torch.zeros(width)) for user in users}
        )
        shape = (len(self.users), width)
        self.register_buffer("running_mean", torch.zeros(shape) if running else None)
        self.register_buffer("running_var", torch.ones(shape) if running else None)

    def forward(self, x: Tensor, domains: tuple[str, ...]) -> Tensor:
        """x: [n * G, C, H, W], interleaved over the G domains."""
        folded = x.reshape(-1, len(domains) * x.shape[1], *x.shape[2:])
        weight, bias = self._join(self.weight, domains), self._join(self.bias, domains)
        if self.running_mean is None:
            normal = F.batch_norm(folded, None, None, weight, bias, True, 0.0, BATCH_NORM_EPS)
        else:
            normal = self._with_running(folded, weight, bias, domains)
        return normal.view_as(x)

    def _with_running(
        self, x: Tensor, weight: Tensor, bias: Tensor, domains: tuple[str, ...]
    ) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        everyone = domains == self.users
        rows = [self.users.index(domain) for domain in domains]
        mean = self.running_mean if everyone else self.running_mean[rows]
        var = self.running_var if everyone else self.running_var[rows]
        normal = F.batch_norm(
            x,
            mean.view(-1),
            var.view(-1),
            weight,
            bias,
            self.training,
            BATCH_NORM_MOMENTUM,
            BATCH_NORM_EPS,
        )
        if self.training and not everyone:
            self.running_mean[rows] = mean
            self.running_var[rows] = var
        return normal

    @staticmethod
    def _join(parameters: nn.ParameterDict, domains: tuple[str, ...]) -> Tensor:
        if len(domains) == 1:
            single: Tensor = parameters[domain_key(domains[0])]
            return single
        return torch.cat([parameters[domain_key(domain)] for domain in domains])


class SharedBatchNorm(nn.Module):
    """Batch norm over the images of all domains that visit the node.

    In training a domain's output depends on the company that it has.
    """

    def __init__(self, width: int, users: Sequence[str], running: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(
            width,
            eps=BATCH_NORM_EPS,
            momentum=BATCH_NORM_MOMENTUM,
            track_running_stats=running,
        )

    def forward(self, x: Tensor, domains: tuple[str, ...]) -> Tensor:
        normal: Tensor = self.norm(x)
        return normal


BATCH_NORMS: dict[str, type[DomainBatchNorm] | type[SharedBatchNorm]] = {
    "per_domain": DomainBatchNorm,
    "shared": SharedBatchNorm,
}


class SqueezeExcite(nn.Module):
    """Gates channels by their means over an image (Hu et al., 2018; gate as in MobileNetV3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(round(width * SQUEEZE_RATIO / 8) * 8, 8)
        self.conv_reduce = nn.Conv2d(width, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.conv_expand(squeezed))


class ConvNormAct(nn.Module):
    """Convolution, batch norm, activation: stem and head convolution."""

    def __init__(
        self, in_width: int, width: int, kernel: int, stride: int, activation: str, norm: Norm
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, bias=False)
        self.bn = norm(width)
        self.act = _ACTIVATIONS[activation]

    def forward(self, x: Tensor, domains: tuple[str, ...]) -> Tensor:
        return self.act(self.bn(self.conv(x), domains))


class InvertedResidual(nn.Module):
    """A block of a layer: expansion, depthwise convolution, squeeze-excite, projection."""

    def __init__(self, layer: Layer, block: Block, norm: Norm) -> None:
        super().__init__()
        width = layer.in_width * block.expansion
        self.conv_pw = nn.Conv2d(layer.in_width, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv_dw = nn.Conv2d(
            width, width, block.kernel, layer.stride, block.kernel // 2, groups=width, bias=False
        )
        self.bn2 = norm(width)
        self.se = SqueezeExcite(width) if block.squeeze_excite else nn.Identity()
        self.conv_pwl = nn.Conv2d(width, layer.width, 1, bias=False)
        self.bn3 = norm(layer.width)
        self.act = _ACTIVATIONS[layer.activation]
        self.has_skip = layer.stride == 1 and layer.in_width == layer.width

    def forward(self, x: Tensor, domains: tuple[str, ...]) -> Tensor:
        shortcut = x
        x = self.act(self.bn1(self.conv_pw(x), domains))
        x = self.act(self.bn2(self.conv_dw(x), domains))
        x = self.se(x)
        x = self.bn3(self.conv_pwl(x), domains)
        return x + shortcut if self.has_skip else x
