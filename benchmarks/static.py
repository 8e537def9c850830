"""The limit: given paths as plain modules of torch, grouped by what is shared, nothing decided.

Which domains go together at which layer is worked out before the first step; a step runs
`nn.Sequential`s on concatenated images, with a batch norm per domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mdl.networks.blocks import SqueezeExcite
from mdl.networks.multipath import HEAD, STEM, Node, path_nodes
from mdl.space.search_space import Block, Path, SearchSpace

_ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


class _Norms(nn.Module):
    """A batch norm of each part of a batch."""

    def __init__(self, width: int, parts: int, batch_size: int, running: bool) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width, track_running_stats=running) for _ in range(parts)
        )

    def forward(self, x: Tensor) -> Tensor:
        if len(self.norms) == 1:
            normal: Tensor = self.norms[0](x)
            return normal
        parts = x.split(self.batch_size)
        return torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)])


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = SqueezeExcite.squeezed(width)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, width, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class _PaddedDepthwise(nn.Sequential):
    """As the project's: padding by itself where the kernel is larger than the image."""

    def __init__(self, width: int, kernel: int, stride: int) -> None:
        super().__init__(
            nn.ZeroPad2d(kernel // 2),
            nn.Conv2d(width, width, kernel, stride, 0, groups=width, bias=False),
        )


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class StaticNetwork(nn.Module):
    """images {domain: [b, 3, s, s]} -> logits {domain: [b, classes]}, along fixed paths."""

    def __init__(
        self,
        space: SearchSpace,
        paths: Mapping[str, Path],
        num_classes: Mapping[str, int],
        batch_size: int,
        image_size: int,
        running: bool = True,
    ) -> None:
        super().__init__()
        self.space, self.batch_size, self.running = space, batch_size, running
        self.size = image_size
        # stretches of layers with the same groups of domains: [(groups, their Sequentials)]
        self.groups: list[list[tuple[str, ...]]] = []
        self.stretches = nn.ModuleList()
        order = [-1, *range(len(space.layers)), len(space.layers)]
        of = {
            d: {node.layer: node for node in path_nodes(space, path)} for d, path in paths.items()
        }
        modules: list[list[nn.Module]] = []
        for layer in order:
            groups: dict[Node | str, list[str]] = {}
            for domain in paths:
                # what is skipped stays with whom it was
                groups.setdefault(of[domain].get(layer, f"stays {domain}"), []).append(domain)
            visited = {tuple(d): node for node, d in groups.items() if isinstance(node, Node)}
            resting = {d for node, ds in groups.items() if isinstance(node, str) for d in ds}
            split = list(visited)
            if resting and self.groups:
                # a group that skips the layer as one goes on as one
                split += [
                    kept
                    for known in self.groups[-1]
                    if (kept := tuple(d for d in known if d in resting))
                ]
            if not self.groups or split != self.groups[-1]:
                self.groups.append(split)
                modules = [[] for _ in split]
                self.stretches.append(nn.ModuleList())
            for group, chain in zip(split, modules, strict=True):
                if group in visited:
                    chain += self._body(visited[group], len(group))
            if layer < 0 or (layer < len(space.layers) and space.layers[layer].stride == 2):
                stride = space.stem_stride if layer < 0 else 2
                self.size = -(-self.size // stride)
            self.stretches[-1] = nn.ModuleList(nn.Sequential(*chain) for chain in modules)
        self.heads = nn.ModuleDict(
            {domain: nn.Linear(space.head_width, n) for domain, n in num_classes.items()}
        )

    def _norm(self, width: int, parts: int) -> nn.Module:
        return _Norms(width, parts, self.batch_size, self.running)

    def _body(self, node: Node, parts: int) -> list[nn.Module]:
        space = self.space
        if node.block in (STEM, HEAD):
            stage = space.stages[0 if node.block == STEM else -1]
            ins, outs, kernel, stride = (
                (3, space.stem_width, 3, space.stem_stride)
                if node.block == STEM
                else (stage.width, space.head_width, 1, 1)
            )
            return [
                nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False),
                self._norm(outs, parts),
                _ACTIVATIONS[stage.activation](),
            ]
        assert isinstance(node.block, Block)
        layer, block = space.layers[node.layer], node.block
        width, act = layer.in_width * block.expansion, _ACTIVATIONS[layer.activation]
        depthwise: nn.Module = (
            _PaddedDepthwise(width, block.kernel, layer.stride)
            if self.size < block.kernel
            else nn.Conv2d(
                width,
                width,
                block.kernel,
                layer.stride,
                block.kernel // 2,
                groups=width,
                bias=False,
            )
        )
        body = [
            nn.Conv2d(layer.in_width, width, 1, bias=False),
            self._norm(width, parts),
            act(),
            depthwise,
            self._norm(width, parts),
            act(),
            *([_SqueezeExcite(width)] if block.squeeze_excite else []),
            nn.Conv2d(width, layer.width, 1, bias=False),
            self._norm(layer.width, parts),
        ]
        skips = layer.stride == 1 and layer.in_width == layer.width
        return [_Residual(nn.Sequential(*body))] if skips else body

    def forward(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        now = {(domain,): x for domain, x in images.items()}
        for groups, chains in zip(self.groups, self.stretches, strict=True):
            assert isinstance(chains, nn.ModuleList)
            now = {
                group: chain(self._gather(group, now))
                for group, chain in zip(groups, chains, strict=True)
            }
        logits = {}
        for group, x in now.items():
            for domain, part in zip(group, x.mean((2, 3)).split(self.batch_size), strict=True):
                logits[domain] = self.heads[domain](part)
        return logits

    def _gather(self, group: Sequence[str], now: Mapping[tuple[str, ...], Tensor]) -> Tensor:
        known = tuple(group)
        if known in now:
            return now[known]
        parts = {}
        for domains, x in now.items():
            if any(domain in group for domain in domains):
                parts |= dict(zip(domains, x.split(self.batch_size), strict=True))
        return torch.cat([parts[domain] for domain in group]) if len(group) > 1 else parts[group[0]]
