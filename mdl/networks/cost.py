"""What nodes and paths cost: multiply-adds.

Multiply-adds (macs) are counted by `torch.utils.flop_counter` on meta tensors, for one image;
the published tables' FLOPs are taken to mean the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mdl.networks.blocks import BATCH_NORMS, Company
from mdl.networks.multipath import HEAD, STEM, Node, build_node, path_nodes
from mdl.space.search_space import ZERO, Path, SearchSpace


class CostTable:
    """Multiply-adds of every node of a space, for images of each domain's size.

    image_size: side of the square input, px, of all domains or by domain.
    num_classes: domain -> classes, for the heads.
    """

    def __init__(
        self,
        space: SearchSpace,
        image_size: int | Mapping[str, int],
        num_classes: Mapping[str, int],
    ) -> None:
        self.space = space
        if isinstance(image_size, int):
            image_size = dict.fromkeys(num_classes, image_size)
        tables = {side: _node_macs(space, side) for side in set(image_size.values())}
        self.image_size = {domain: image_size[domain] for domain in num_classes}
        self._nodes = {domain: tables[side] for domain, side in self.image_size.items()}
        self.heads = {domain: space.head_width * n for domain, n in num_classes.items()}

    def node_macs(self, node: Node, domain: str) -> int:
        """Multiply-adds of one image of `domain` at a node."""
        return self._nodes[domain][node]

    def path_macs(self, path: Path, domain: str) -> int:
        """Multiply-adds of one image of `domain` on `path`, head included."""
        nodes = path_nodes(self.space, path)
        return sum(self.node_macs(node, domain) for node in nodes) + self.heads[domain]

    def choices(self) -> Tensor:
        """Multiply-adds of each choice at each layer, [domains, layers, blocks]; zero: none."""
        most = max(len(layer.blocks) for layer in self.space.layers)
        table = torch.zeros(len(self.heads), len(self.space.layers), most)
        for row, domain in enumerate(self.heads):
            for layer in self.space.layers:
                for choice, block in enumerate(layer.blocks):
                    if block != ZERO:
                        node = Node(layer.index, block)
                        table[row, layer.index, choice] = self.node_macs(node, domain)
        return table

    def fixed(self) -> Tensor:
        """Multiply-adds that no choice changes: stem, head convolution and head, [domains]."""
        ends = (Node(-1, STEM), Node(len(self.space.layers), HEAD))
        macs = [
            sum(self.node_macs(node, domain) for node in ends) + head
            for domain, head in self.heads.items()
        ]
        return torch.tensor(macs, dtype=torch.float)

    def mean_path_macs(self) -> Tensor:
        """Multiply-adds of a uniformly drawn path, on average, [domains]."""
        offered = torch.tensor([float(len(layer.blocks)) for layer in self.space.layers])
        return self.fixed() + (self.choices().sum(-1) / offered).sum(-1)


@cache  # measured once however many architectures of a space are compared
def _node_macs(space: SearchSpace, image_size: int) -> dict[Node, int]:
    norm = partial(BATCH_NORMS["shared"], users=("one",), running=False)
    macs: dict[Node, int] = {}
    with torch.device("meta"):
        x = torch.empty(1, 3, image_size, image_size)
        macs[Node(-1, STEM)], x = _measure(build_node(space, Node(-1, STEM), norm), x)
        for layer in space.layers:
            inner = x
            for block in layer.blocks:
                if block != ZERO:
                    node = Node(layer.index, block)
                    macs[node], x = _measure(build_node(space, node, norm), inner)
        head = Node(len(space.layers), HEAD)
        macs[head], x = _measure(build_node(space, head, norm), x)
    return macs


def _measure(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        # two images: batch norm refuses to normalise one value by itself
        y = module(torch.cat([x, x]), Company(("one",), (2,)))
    return counter.get_total_flops() // 4, y[:1]  # 2 operations per multiply-add, 2 images


def macs_of_all_domains(network_paths: Mapping[str, Path], table: CostTable) -> int:
    """Multiply-adds of one image of each domain on its own path, summed."""
    return sum(table.path_macs(path, domain) for domain, path in network_paths.items())


def macs_of_one_image(
    network_paths: Mapping[str, Path], table: CostTable, shared_batch_norm: bool
) -> int:
    """Multiply-adds of one image sent through all domains, common work done once.

    The only sense that fits the published table's 0.09 and 1.08. A common prefix of two paths
    computes the same features only where batch norm is shared, and with it the normalisation
    of the input (`BatchTransform`).
    """
    if not shared_batch_norm:
        return macs_of_all_domains(network_paths, table)
    prefixes: set[tuple[int, tuple[Node, ...]]] = set()
    total = sum(table.heads[domain] for domain in network_paths)
    for domain, path in network_paths.items():
        nodes = path_nodes(table.space, path)
        for end in range(1, len(nodes) + 1):
            prefix = table.image_size[domain], tuple(nodes[:end])
            if prefix not in prefixes:
                prefixes.add(prefix)
                total += table.node_macs(nodes[end - 1], domain)
    return total
