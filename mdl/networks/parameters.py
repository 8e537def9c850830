"""What nodes weigh: the parameters of any paths, without building their network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from mdl.networks.blocks import BATCH_NORMS, norm_parameters
from mdl.networks.multipath import HEAD, STEM, Node, build_node, path_nodes
from mdl.space.search_space import ZERO, Path, SearchSpace


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, what is shared counted once."""

    convolutions: int
    norm: int
    heads: int

    @property
    def total(self) -> int:
        return self.convolutions + self.norm + self.heads


class ParameterTable:
    """Parameters of every node of a space, each counted once and when it is first asked for.

    Looking for paths of a wanted size asks for many, and to build a network for each takes long.

    num_classes: domain -> classes, for the heads. batch_norm: 'per_domain' or 'shared'.
    """

    def __init__(self, space: SearchSpace, num_classes: Mapping[str, int], batch_norm: str) -> None:
        self.space = space
        self.heads = {d: (space.head_width + 1) * n for d, n in num_classes.items()}
        self._norm = partial(BATCH_NORMS[batch_norm], users=("one",), running=False)
        self._norm_per_user = batch_norm == "per_domain"
        self._nodes = _known_nodes(space, batch_norm)

    def choices(self, private: bool) -> tuple[Tensor, Tensor]:
        """What a block adds once it has a user, and what each user adds: [layers, blocks] both."""
        most = max(len(layer.blocks) for layer in self.space.layers)
        once = torch.zeros(len(self.space.layers), most)
        per_user = torch.zeros_like(once)
        for layer in self.space.layers:
            for choice, block in enumerate(layer.blocks):
                if block != ZERO:
                    place = layer.index, choice
                    once[place], per_user[place] = self._split(Node(layer.index, block), private)
        return once, per_user

    def fixed(self, private: bool) -> int:
        """Parameters that no choice changes: stem, head convolution and heads."""
        ends = (Node(-1, STEM), Node(len(self.space.layers), HEAD))
        parts = [self._split(node, private) for node in ends]
        ends_total = sum(once + len(self.heads) * per_user for once, per_user in parts)
        return ends_total + sum(self.heads.values())

    def _split(self, node: Node, private: bool) -> tuple[int, int]:
        """Parameters that a node has once, and per user."""
        convolutions, norm = self.weigh(node)
        if private:
            return 0, convolutions + norm
        return (convolutions, norm) if self._norm_per_user else (convolutions + norm, 0)

    def count(self, paths: Mapping[str, Path], private: bool = False) -> Parameters:
        """Parameters of the network of these paths; `private`: with nothing shared."""
        convolutions = norm = 0
        users = Counter(node for path in paths.values() for node in path_nodes(self.space, path))
        for node, of in users.items():
            of_convolutions, of_norm = self.weigh(node)
            convolutions += of_convolutions * (of if private else 1)
            norm += of_norm * (of if private or self._norm_per_user else 1)
        return Parameters(convolutions, norm, sum(self.heads[domain] for domain in paths))

    def weigh(self, node: Node) -> tuple[int, int]:
        """Parameters of a node without its norms, and of its norms for one user."""
        if node not in self._nodes:
            with torch.device("meta"):
                module = build_node(self.space, node, self._norm)
            of_norm = sum(p.numel() for p in norm_parameters(module))
            self._nodes[node] = sum(p.numel() for p in module.parameters()) - of_norm, of_norm
        return self._nodes[node]


@cache  # filled as nodes are asked for, by all the tables of a space
def _known_nodes(space: SearchSpace, batch_norm: str) -> dict[Node, tuple[int, int]]:
    """Node -> parameters of its convolutions, and of its norms for one user."""
    return {}
