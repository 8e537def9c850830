"""What nodes weigh: the parameters of any paths, without building their network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch

from mdl.networks.blocks import BATCH_NORMS, norm_parameters
from mdl.networks.multipath import Node, build_node, path_users, supernet_users
from mdl.space.search_space import Path, SearchSpace


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
    """Parameters of every node of a space, counted once.

    Looking for paths of a wanted size asks for many, and to build a network for each takes long.

    num_classes: domain -> classes, for the heads. batch_norm: 'per_domain' or 'shared'.
    """

    def __init__(self, space: SearchSpace, num_classes: Mapping[str, int], batch_norm: str) -> None:
        self.space = space
        self.heads = {d: (space.head_width + 1) * n for d, n in num_classes.items()}
        self._norm_per_user = batch_norm == "per_domain"
        self._nodes = _node_parameters(space, batch_norm)

    def count(self, paths: Mapping[str, Path], private: bool = False) -> Parameters:
        """Parameters of the network of these paths; `private`: with nothing shared."""
        convolutions = norm = 0
        for node, users in path_users(self.space, paths, private).items():
            of_convolutions, of_norm = self._nodes[Node(node.layer, node.block)]
            convolutions += of_convolutions
            norm += of_norm * (len(users) if self._norm_per_user else 1)
        return Parameters(convolutions, norm, sum(self.heads[domain] for domain in paths))


@cache  # built once however many architectures of a space are compared
def _node_parameters(space: SearchSpace, batch_norm: str) -> dict[Node, tuple[int, int]]:
    """Node -> parameters of its convolutions, and of its norms for one user."""
    nodes: dict[Node, tuple[int, int]] = {}
    norm = partial(BATCH_NORMS[batch_norm], users=("one",), running=False)
    with torch.device("meta"):
        for node in supernet_users(space, ["one"]):
            module = build_node(space, node, norm)
            total = sum(p.numel() for p in module.parameters())
            of_norm = sum(p.numel() for p in norm_parameters(module))
            nodes[node] = (total - of_norm, of_norm)
    return nodes
