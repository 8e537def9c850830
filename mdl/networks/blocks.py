"""What a node computes: convolutions, squeeze-excite, and batch norm per domain.

A node is called once for all domains that visit it, on their images one after the other:
[n_1 + ... + n_G, C, H, W]. Only batch norm cares which image is of which domain.

Names of layers as in timm: conv_pw (expansion), conv_dw (depthwise), conv_pwl (projection).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdl.networks.joint_norm import FEWEST_DOMAINS, normalise_together
from mdl.networks.rank_norm import normalise_over_ranks, several_ranks
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


@dataclass(frozen=True)
class Company:
    """Whose images a batch holds: domain after domain, so many of each."""

    domains: tuple[str, ...]
    counts: tuple[int, ...]


class DomainBatchNorm(nn.Module):
    """Batch norm with statistics and affine per domain, for a node's users only.

    A domain's output does not depend on which other domains visit the node. All is held in
    tables, a row per user. The row of a user that does not visit the node in a step gets a zero
    gradient there; for a super-network the optimizer therefore keeps no momentum of these
    tables (`weight_optimizer`), and such a row stays as it is.

    running: whether running statistics are kept and used in evaluation; a super-network,
    whose paths change at every step, normalises by the batch at all times (as TuNAS does).
    over_ranks: whether the batch is that of all ranks, so that a run does not depend on how many
    there are; else each rank normalises by its own images.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self, width: int, users: Sequence[str], running: bool, over_ranks: bool = True
    ) -> None:
        super().__init__()
        self.users, self.over_ranks = tuple(users), over_ranks
        shape = (len(self.users), width)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape) if running else None)
        self.register_buffer("running_var", torch.ones(shape) if running else None)

    def forward(self, x: Tensor, company: Company) -> Tensor:
        """x: [n, C, H, W]; C may be less than the width: the first C channels are meant then."""
        rows = [self.users.index(domain) for domain in company.domains]
        by_batch = self.training or self.running_mean is None
        if self.over_ranks and by_batch and several_ranks():
            return self._normalise_over_ranks(x, company, rows)
        weight = _rows(part(self.weight, 1, x.shape[1]), rows)
        bias = _rows(part(self.bias, 1, x.shape[1]), rows)
        if len(rows) == 1:
            return self._normalise(x, rows[0], weight[0], bias[0])
        alike = len(set(company.counts)) == 1
        pays = x.is_cuda or torch.compiler.is_compiling()
        if pays and by_batch and alike and len(rows) >= FEWEST_DOMAINS:
            return self._normalise_together(x, rows, weight, bias)
        parts = zip(x.split(company.counts), rows, weight, bias, strict=True)
        return torch.cat([self._normalise(*of) for of in parts])

    def _normalise(self, x: Tensor, row: int, weight: Tensor, bias: Tensor) -> Tensor:
        affine = weight, bias
        if self.running_mean is None or self.running_var is None:
            return F.batch_norm(x, None, None, *affine, True, 0.0, BATCH_NORM_EPS)
        running = self.running_mean[row], self.running_var[row]
        training = self.training
        return F.batch_norm(x, *running, *affine, training, BATCH_NORM_MOMENTUM, BATCH_NORM_EPS)

    def _normalise_together(
        self,
        x: Tensor,
        rows: Sequence[int],
        weight: tuple[Tensor, ...],
        bias: tuple[Tensor, ...],
    ) -> Tensor:
        of_all = torch.stack(weight), torch.stack(bias)
        normal, mean, variance = normalise_together(x, *of_all, BATCH_NORM_EPS)
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                for running, found in ((self.running_mean, mean), (self.running_var, variance)):
                    if rows == list(range(len(running))):
                        running.lerp_(found, BATCH_NORM_MOMENTUM)
                    else:
                        for row, of in zip(rows, found.unbind(), strict=True):
                            running[row].lerp_(of, BATCH_NORM_MOMENTUM)
        return normal

    def _normalise_over_ranks(self, x: Tensor, company: Company, rows: Sequence[int]) -> Tensor:
        affine = part(self.weight, 1, x.shape[1])[rows], part(self.bias, 1, x.shape[1])[rows]
        normal, mean, variance = normalise_over_ranks(x, company.counts, *affine, BATCH_NORM_EPS)
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean[rows] += BATCH_NORM_MOMENTUM * (mean - self.running_mean[rows])
                self.running_var[rows] += BATCH_NORM_MOMENTUM * (variance - self.running_var[rows])
        return normal

    @torch.no_grad()
    def inherit(self, other: DomainBatchNorm, like: Mapping[str, str]) -> None:
        """Copies to each user the row of the domain that it is to be like.

        like: user -> user of the other's; a user that it does not name is to be like itself, and
        where the other lacks it, like the mean of the other's: convolutions that were trained
        with those rows expect features of that kind.
        """
        tables = dict(other.named_parameters()) | dict(other.named_buffers())
        for name, table in [*self.named_parameters(), *self.named_buffers()]:
            if name not in tables:  # running statistics, which a super-network lacks
                continue
            for row, user in enumerate(self.users):
                model, theirs = like.get(user, user), tables[name]
                known = model in other.users
                table[row] = theirs[other.users.index(model)] if known else theirs.mean(0)


class SharedBatchNorm(nn.Module):
    """Batch norm over the images of all domains that visit the node.

    In training a domain's output depends on the company that it has.
    """

    def __init__(
        self, width: int, users: Sequence[str], running: bool, over_ranks: bool = True
    ) -> None:
        super().__init__()
        self.over_ranks = over_ranks
        self.norm = nn.BatchNorm2d(
            width,
            eps=BATCH_NORM_EPS,
            momentum=BATCH_NORM_MOMENTUM,
            track_running_stats=running,
        )

    def forward(self, x: Tensor, company: Company) -> Tensor:
        by_batch = self.training or self.norm.running_mean is None
        if self.over_ranks and by_batch and several_ranks():
            return self._normalise_over_ranks(x)
        if x.shape[1] == self.norm.num_features:
            normal: Tensor = self.norm(x)
            return normal
        affine = self.norm.weight[: x.shape[1]], self.norm.bias[: x.shape[1]]
        return F.batch_norm(x, None, None, *affine, True, 0.0, BATCH_NORM_EPS)

    def _normalise_over_ranks(self, x: Tensor) -> Tensor:
        norm, width = self.norm, x.shape[1]
        affine = part(norm.weight, 0, width)[None], part(norm.bias, 0, width)[None]
        normal, mean, variance = normalise_over_ranks(x, [len(x)], *affine, BATCH_NORM_EPS)
        if norm.running_mean is not None and norm.running_var is not None:
            with torch.no_grad():
                norm.running_mean += BATCH_NORM_MOMENTUM * (mean[0] - norm.running_mean)
                norm.running_var += BATCH_NORM_MOMENTUM * (variance[0] - norm.running_var)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked += 1
        return normal


def _rows(table: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
    """Those rows of a table, one by one."""
    if len(rows) == 1:
        return (table[rows[0]],)
    if len(rows) == len(table) or torch.compiler.is_compiling():
        every = table.unbind()
        return tuple(every[row] for row in rows)
    found: tuple[Tensor, ...] = _SomeRows.apply(table, rows)
    return found


class _SomeRows(torch.autograd.Function):
    """Rows of a table; the others' gradients are one tensor of zeros.

    The gradient of `unbind` makes one for each row that is not used, which in a super-network's
    step was half of all calls.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
        ctx.rows, ctx.count = rows, len(table)
        return tuple(table[row] for row in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        by_row = dict(zip(ctx.rows, gradients, strict=True))
        none = torch.zeros_like(gradients[0])
        return torch.stack([by_row.get(row, none) for row in range(ctx.count)]), None


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of all batch norms of a network."""
    kinds = (DomainBatchNorm, SharedBatchNorm)
    norms = [module for module in network.modules() if isinstance(module, kinds)]
    return [parameter for norm in norms for parameter in norm.parameters()]


BATCH_NORMS: dict[str, type[DomainBatchNorm] | type[SharedBatchNorm]] = {
    "per_domain": DomainBatchNorm,
    "shared": SharedBatchNorm,
}


class SqueezeExcite(nn.Module):
    """Gates channels by their means over an image (Hu et al., 2018; gate as in MobileNetV3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = self.squeezed(width)
        self.conv_reduce = nn.Conv2d(width, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, width, 1)

    @staticmethod
    def squeezed(width: int) -> int:
        return max(round(width * SQUEEZE_RATIO / 8) * 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, H, W]; C may be less than the width."""
        width = x.shape[1]
        reduce, expand = self.conv_reduce, self.conv_expand
        squeezed = self.squeezed(width)
        assert reduce.bias is not None and expand.bias is not None
        gate = F.conv2d(
            x.mean((2, 3), keepdim=True),
            part(part(reduce.weight, 0, squeezed), 1, width),
            part(reduce.bias, 0, squeezed),
        )
        gate = F.conv2d(
            F.relu(gate),
            part(part(expand.weight, 0, width), 1, squeezed),
            part(expand.bias, 0, width),
        )
        return x * F.hardsigmoid(gate)


class DepthwiseConv(nn.Conv2d):
    """A convolution of each channel by itself, padded to keep the size."""

    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__(width, width, kernel, stride, kernel // 2, groups=width, bias=False)
        self.kernel = kernel

    def forward(self, x: Tensor, kernel: int | None = None) -> Tensor:
        """x: [n, C, H, W]; C may be less than the width; `kernel`: a smaller one, the centre."""
        kernel = kernel or self.kernel
        weight, width = part(self.weight, 0, x.shape[1]), x.shape[1]
        if kernel < self.kernel:
            margin = (self.kernel - kernel) // 2
            weight = weight[:, :, margin:-margin, margin:-margin]
        if x.shape[-1] < kernel and torch.is_grad_enabled():
            # oneDNN's backward is some four to fifty times slower where the kernel is larger
            # than the image, unless the padding is done by itself
            padded = F.pad(x, [kernel // 2] * 4)
            return F.conv2d(padded, weight, None, self.stride, 0, 1, width)
        return F.conv2d(x, weight, None, self.stride, kernel // 2, 1, width)


class ConvNormAct(nn.Module):
    """Convolution, batch norm, activation: stem and head convolution."""

    def __init__(
        self, in_width: int, width: int, kernel: int, stride: int, activation: str, norm: Norm
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, bias=False)
        self.bn = norm(width)
        self.act = _ACTIVATIONS[activation]

    def forward(self, x: Tensor, company: Company) -> Tensor:
        return self.act(self.bn(self.conv(x), company))


class InvertedResidual(nn.Module):
    """A block of a layer: expansion, depthwise convolution, squeeze-excite, projection."""

    def __init__(self, layer: Layer, block: Block, norm: Norm) -> None:
        super().__init__()
        self.layer, self.block = layer, block
        width = layer.in_width * block.expansion
        self.conv_pw = nn.Conv2d(layer.in_width, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv_dw = DepthwiseConv(width, block.kernel, layer.stride)
        self.bn2 = norm(width)
        self.se = SqueezeExcite(width) if block.squeeze_excite else None
        self.conv_pwl = nn.Conv2d(width, layer.width, 1, bias=False)
        self.bn3 = norm(layer.width)
        self.act = _ACTIVATIONS[layer.activation]
        self.has_skip = layer.stride == 1 and layer.in_width == layer.width

    def forward(self, x: Tensor, company: Company, block: Block | None = None) -> Tensor:
        """What `block`, this one or one that it contains, does with x [n, C, H, W]."""
        block = block or self.block
        shortcut, width = x, self.layer.in_width * block.expansion
        x = F.conv2d(x, part(self.conv_pw.weight, 0, width))
        x = self.act(self.bn1(x, company))
        x = self.act(self.bn2(self.conv_dw(x, block.kernel), company))
        if block.squeeze_excite:
            assert self.se is not None
            x = self.se(x)
        x = self.bn3(F.conv2d(x, part(self.conv_pwl.weight, 1, width)), company)
        return x + shortcut if self.has_skip else x


class TiedBlock(nn.Module):
    """A block that computes with a part of the weights of its layer's largest block.

    Its first channels, the centre of its kernels. Blocks of a layer then learn from each other's
    visits. Source: 'op collapsing' and channel masks of TuNAS (Bender et al., CVPR 2020); the
    centre of the kernel: Once-for-All (Cai et al., ICLR 2020). Differs from TuNAS: depthwise
    kernels of different sizes share weights too, and so do batch norms' scales and shifts. What a
    step does not use of them has a zero gradient, not none: an optimizer's momentum still moves it.
    """

    def __init__(self, largest: InvertedResidual, block: Block) -> None:
        super().__init__()
        self._largest = (largest,)  # in a tuple: it is the network's, once, not each block's
        self.block = block

    @property
    def largest(self) -> InvertedResidual:
        return self._largest[0]

    def forward(self, x: Tensor, company: Company) -> Tensor:
        made: Tensor = self.largest(x, company, self.block)
        return made


def part(weight: Tensor, dimension: int, length: int) -> Tensor:
    """The first `length` along a dimension; the tensor itself, not a view, where that is all."""
    return weight if weight.shape[dimension] == length else weight.narrow(dimension, 0, length)
