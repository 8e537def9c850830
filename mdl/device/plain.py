"""A trained network as a runtime computes it: a chain of plain convolutions per domain.

Batch norm of a trained network is y = x * scale + shift, per channel and, where batch norm is per
domain, per domain. It can be folded into the convolution before it; a convolution that several
domains share is then no longer the same for them, and is stored for each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdl.networks.blocks import (
    BATCH_NORM_EPS,
    Activation,
    ConvNormAct,
    DomainBatchNorm,
    InvertedResidual,
    SharedBatchNorm,
    SqueezeExcite,
    domain_key,
)
from mdl.networks.multipath import MultiPathNetwork, path_nodes
from mdl.space.search_space import Path

FOLDED, SCALED, MIXED = "folded", "scaled", "mixed"
FORMS = (FOLDED, SCALED, MIXED)
"""What becomes of batch norm after a convolution that domains share.

folded: it goes into the convolution's weights, which are then stored once per domain.
scaled: the weights stay the same tensor for all, and a scale per channel follows.
mixed: folded where the weights are few for the values that they make (`_WEIGHTS_PER_VALUE`), so
where a copy is small and a scale is slow: early in a network, and in depthwise convolutions.
A convolution of one domain alone, or with shared batch norm, is folded in every form.
"""

_WEIGHTS_PER_VALUE = 4  # measured: docs/results/device.md
_LEAST_SCALE = 1e-6
INT8_STEPS = 127  # of weights on either side of zero


def rounded(weight: Tensor) -> Tensor:
    """Weights [out, ...] at the nearest of the INT8 steps of their output channel."""
    flat = weight.flatten(1)
    step = flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / INT8_STEPS
    return ((flat / step).round() * step).view_as(weight)


class NormalisedImage(nn.Module):
    """Colours [n, 3, s, s] in 0 to 255 -> what the network was trained on."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """mean, std: of colours in 0 to 1."""
        super().__init__()
        deviation = torch.tensor(std).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / deviation)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class PlainConv(nn.Module):
    """A convolution with its batch norm, folded or not, and its activation.

    weight: the trained one of `conv`, or that rounded. scale, shift [C]: batch norm's. Not folded,
    the weight stays the same tensor for all domains, and the shift goes into the bias as
    shift / scale: one operation after the convolution instead of two.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        act: Activation | None,
        fold: bool,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups
        self.act = act
        if fold:
            self.register_buffer("weight", weight * scale.view(-1, 1, 1, 1))
            self.register_buffer("bias", shift)
            self.register_buffer("scale", None)
        else:
            # a channel that batch norm has all but switched off keeps its shift
            least = scale.abs().clamp(min=_LEAST_SCALE)
            scale = least.where(scale >= 0, -least)
            self.register_buffer("weight", weight)
            self.register_buffer("bias", shift / scale)
            self.register_buffer("scale", scale.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        if self.scale is not None:
            x = x * self.scale
        return x if self.act is None else self.act(x)


class PlainGate(nn.Module):
    """Squeeze-excite whose gate is a convolution cut off at 0 and 1.

    The hard sigmoid is clamp(x / 6 + 1 / 2): what comes before the clamp goes into the convolution,
    which runtimes compute together with a clamp.
    """

    def __init__(self, se: SqueezeExcite) -> None:
        super().__init__()
        self.reduce, expand = se.conv_reduce, se.conv_expand
        self.expand = nn.Conv2d(expand.in_channels, expand.out_channels, 1)
        assert expand.bias is not None and self.expand.bias is not None
        with torch.no_grad():
            self.expand.weight.copy_(expand.weight / 6)
            self.expand.bias.copy_(expand.bias / 6 + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        opened: Tensor = x * self.expand(gate).clamp(0, 1)
        return opened


class PlainBlock(nn.Module):
    """An inverted residual of plain convolutions."""

    def __init__(
        self,
        conv_pw: PlainConv,
        conv_dw: PlainConv,
        se: PlainGate | None,
        conv_pwl: PlainConv,
        has_skip: bool,
    ) -> None:
        super().__init__()
        self.conv_pw, self.conv_dw, self.conv_pwl = conv_pw, conv_dw, conv_pwl
        self.se, self.has_skip = se, has_skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(self.conv_pw(x))
        if self.se is not None:
            y = self.se(y)
        y = self.conv_pwl(y)
        after: Tensor = y + x if self.has_skip else y
        return after


class PlainHead(nn.Module):
    """Mean over the image, then a domain's classes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        # the dimensions kept until the end: XNNPACK takes no other mean
        logits: Tensor = self.linear(x.mean((2, 3), keepdim=True).flatten(1))
        return logits


class PlainPath(nn.Module):
    """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes] of one domain."""

    def __init__(self, steps: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleDict(steps)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps.values():
            x = step(x)
        return x


class PlainPaths(nn.Module):
    """One image through the paths of several domains, their common beginning computed once.

    Two paths have the beginning in common that consists of the same modules, as batch norm and
    normalisation shared by all domains make them (`plain_paths`).
    """

    def __init__(self, paths: Mapping[str, PlainPath]) -> None:
        super().__init__()
        # told apart here: while a graph is traced, modules are passing proxies whose ids recur
        numbers: dict[nn.Module, int] = {}
        self.numbers = [
            [numbers.setdefault(step, len(numbers)) for step in path.steps.values()]
            for path in paths.values()
        ]
        # each once: exporters keep a tensor for each of its names
        self.steps = nn.ModuleList(numbers)

    @property
    def has_common_work(self) -> bool:
        """Whether two paths begin with the same node."""
        firsts = {tuple(numbers[:2]) for numbers in self.numbers}
        return len(firsts) < len(self.numbers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes] of each domain."""
        known: dict[tuple[int, ...], Tensor] = {(): x}
        logits = []
        for numbers in self.numbers:
            so_far: tuple[int, ...] = ()
            for number in numbers:
                after = (*so_far, number)
                if after not in known:
                    known[after] = self.steps[number](known[so_far])
                so_far = after
            logits.append(known[so_far])
        return logits


def plain_paths(
    network: MultiPathNetwork,
    paths: Mapping[str, Path],
    normalisation: Mapping[str, NormalisedImage],
    image_size: Mapping[str, int],
    form: str,
    int8: bool = False,
) -> dict[str, PlainPath]:
    """A chain per domain that computes what the trained network does in evaluation.

    network: in the contiguous memory format, as exporters need it. image_size: domain -> side, px.
    form: one of `FORMS`. int8: whether weights are rounded to the steps of INT8 before batch norm
    is folded into them, so that their codes are then the same for all domains that share them.

    Modules that are the same for several domains are one module; weights are the trained tensors
    themselves where nothing is folded into them.
    """
    known: dict[tuple[str, ...], nn.Module] = {}
    # squeeze-excite has no batch norm: a gate is its node's, whoever visits
    gates = {
        key: PlainGate(node.se)
        for key, node in network.nodes.items()
        if isinstance(node, InvertedResidual) and node.se is not None
    }
    chains = {}
    for domain, path in paths.items():
        steps: dict[str, nn.Module] = {"normalise": normalisation[domain]}
        side = image_size[domain]
        for node in path_nodes(network.space, path, domain if network.private else None):
            module = network.nodes[node.key]
            alike = (node.key,) if _same_for_all(module) else (node.key, domain)
            if alike not in known:
                alone = len(network.users[node]) == 1 or _same_for_all(module)
                gate = gates.get(node.key)
                known[alike] = _plain_node(module, gate, domain, alone, form, side, int8)
            side = _side_after(module, side)
            steps[node.key.partition("@")[0]] = known[alike]
        steps["classify"] = PlainHead(cast(nn.Linear, network.heads[domain_key(domain)]))
        chains[domain] = PlainPath(steps).eval()
    return chains


def stored_bytes(paths: Mapping[str, PlainPath]) -> tuple[int, int]:
    """Bytes of the tensors of some paths: equal ones counted once, and counted for each path."""
    once: dict[bytes, int] = {}
    apart = 0
    for path in paths.values():
        for tensor in path.state_dict().values():
            content = tensor.contiguous().numpy().tobytes()
            once[hashlib.sha256(content).digest()] = len(content)
            apart += len(content)
    return sum(once.values()), apart


def _same_for_all(module: nn.Module) -> bool:
    return not any(isinstance(of, DomainBatchNorm) for of in module.modules())


def _side_after(module: nn.Module, side: int) -> int:
    conv = module.conv if isinstance(module, ConvNormAct) else module.conv_dw
    return -(-side // cast(nn.Conv2d, conv).stride[0])


def _plain_node(
    module: nn.Module,
    gate: PlainGate | None,
    domain: str,
    alone: bool,
    form: str,
    side: int,
    int8: bool,
) -> nn.Module:
    """A node for one of its users. alone: whether it is the same for all who visit it.

    side: of its input, px.
    """
    after = _side_after(module, side)

    def plain(conv: nn.Conv2d, norm: nn.Module, act: Activation | None, side: int) -> PlainConv:
        few = conv.weight[0].numel() <= _WEIGHTS_PER_VALUE * side**2
        fold = alone or form == FOLDED or (form == MIXED and few)
        weight = rounded(conv.weight.detach()) if int8 else conv.weight.detach()
        return PlainConv(conv, weight, *_scale_and_shift(norm, domain), act, fold)

    if isinstance(module, ConvNormAct):
        return plain(module.conv, module.bn, module.act, after)
    assert isinstance(module, InvertedResidual)
    return PlainBlock(
        plain(module.conv_pw, module.bn1, module.act, side),
        plain(module.conv_dw, module.bn2, module.act, after),
        gate,
        plain(module.conv_pwl, module.bn3, None, after),
        module.has_skip,
    )


@torch.no_grad()
def _scale_and_shift(norm: nn.Module, domain: str) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation as x * scale + shift, [C] both."""
    if isinstance(norm, DomainBatchNorm):
        row = norm.users.index(domain)
        assert norm.running_mean is not None and norm.running_var is not None
        tables = norm.weight, norm.bias, norm.running_mean, norm.running_var
        weight, bias, mean, var = (table[row] for table in tables)
    else:
        assert isinstance(norm, SharedBatchNorm)
        of = norm.norm
        assert of.running_mean is not None and of.running_var is not None
        weight, bias, mean, var = of.weight, of.bias, of.running_mean, of.running_var
    scale = weight / (var + BATCH_NORM_EPS).sqrt()
    return scale.clone(), (bias - mean * scale).clone()
