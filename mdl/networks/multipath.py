"""The one network class: nodes, each held once, and paths that lead through them.

The super-network is this class holding every node; a derived network is this class holding the
nodes on the chosen paths; a bundle of single-domain models is this class with nodes private to
their domain. So a subnetwork computes what the super-network computes on its path, and what is
shared is counted once, by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from mdl.networks.blocks import (
    BATCH_NORMS,
    Company,
    ConvNormAct,
    DomainBatchNorm,
    InvertedResidual,
    Norm,
    TiedBlock,
    domain_key,
)
from mdl.networks.calls import CPU_CALL_BYTES, in_parts
from mdl.space.search_space import ZERO, Block, Layer, Path, SearchSpace

STEM, HEAD = "stem", "head"


Call = tuple[str, tuple[str, ...]]
"""A node's name, and the domains whose images it is called with, all of one size."""
Route = tuple[Call, ...]


@dataclass(frozen=True)
class Node:
    """A block at a layer. owner: the one domain that has it for itself, if any.

    layer is the layer's index; stem and head convolution have a name in place of a block.
    """

    layer: int
    block: Block | str
    owner: str | None = None

    @property
    def key(self) -> str:
        """Its name among the network's modules."""
        place = self.block if isinstance(self.block, str) else f"layer{self.layer}_{self.block}"
        return place if self.owner is None else place + domain_key(self.owner)


Users = dict[Node, tuple[str, ...]]
"""Node -> the domains that may visit it."""


def path_nodes(space: SearchSpace, path: Path, owner: str | None = None) -> list[Node]:
    """The nodes that a path visits, stem and head convolution included, in their order."""
    searched = [Node(i, block, owner) for i, block in enumerate(path) if block != ZERO]
    return [Node(-1, STEM, owner), *searched, Node(len(space.layers), HEAD, owner)]


def supernet_users(space: SearchSpace, domains: Sequence[str], private: bool = False) -> Users:
    """Every node of the space, each for all domains; or, private, each domain its own."""
    every = [Node(-1, STEM)]
    every += [Node(la.index, block) for la in space.layers for block in la.blocks if block != ZERO]
    every += [Node(len(space.layers), HEAD)]
    if not private:
        return {node: tuple(domains) for node in every}
    return {Node(n.layer, n.block, domain): (domain,) for n in every for domain in domains}


def path_users(space: SearchSpace, paths: Mapping[str, Path], private: bool = False) -> Users:
    """The nodes on the given paths, each for the domains whose path visits it."""
    users: dict[Node, list[str]] = {}
    for domain, path in paths.items():
        for node in path_nodes(space, path, domain if private else None):
            users.setdefault(node, []).append(domain)
    in_order = sorted(users, key=lambda node: (node.layer, node.key))
    return {node: tuple(users[node]) for node in in_order}


class _Group:
    """Features of several domains, one domain's images after the other's.

    features: [n_1 + ... + n_G, C, H, W].
    """

    def __init__(self, company: Company, features: Tensor) -> None:
        self.company, self.features = company, features
        self._parts: dict[str, Tensor] | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """Domain -> its features, a view. One split for all: its gradient is one `cat`."""
        if self._parts is None:  # functools.cached_property has a lock, which does not compile
            split = self.features.split(self.company.counts)
            self._parts = dict(zip(self.company.domains, split, strict=True))
        return self._parts


class MultiPathNetwork(nn.Module):
    """Nodes, each registered once, and a head per domain.

    users: node -> the domains that may visit it (see `supernet_users`, `path_users`).
    num_classes: domain -> number of its classes.
    batch_norm: 'per_domain' or 'shared'.
    running: whether batch norm keeps running statistics (see `DomainBatchNorm`).
    norm_over_ranks: whether batch norm is over the images of all ranks, or of each by itself.
    tied: whether the blocks of a layer are parts of one largest block (see `TiedBlock`), as a
    super-network's can be, that keeps no running statistics.
    """

    def __init__(
        self,
        space: SearchSpace,
        users: Users,
        num_classes: Mapping[str, int],
        *,
        batch_norm: str = "per_domain",
        running: bool = True,
        norm_over_ranks: bool = True,
        tied: bool = False,
    ) -> None:
        super().__init__()
        assert not (tied and running)  # statistics of different blocks have nothing in common
        self.space, self.users = space, users
        self.domains, self.num_classes = tuple(num_classes), dict(num_classes)
        self.batch_norm = batch_norm
        self.private = any(node.owner is not None for node in users)
        self.nodes, self.largest = nn.ModuleDict(), nn.ModuleDict()
        for node, of in users.items():
            norm: Norm = partial(
                BATCH_NORMS[batch_norm], users=of, running=running, over_ranks=norm_over_ranks
            )
            self.nodes[node.key] = (
                self._tied_block(node, norm)
                if tied and isinstance(node.block, Block)
                else build_node(space, node, norm)
            )
        self.heads = nn.ModuleDict(
            {
                domain_key(domain): nn.Linear(space.head_width, classes)
                for domain, classes in num_classes.items()
            }
        )
        _initialise(self)

    def forward(self, images: Mapping[str, Tensor], paths: Mapping[str, Path]) -> dict[str, Tensor]:
        """Images [n, 3, H, W] per domain -> logits [n, classes] per domain.

        paths: the path of each domain among `images`. Each node is called once for all domains
        that visit it with images of the same size; a layer that a path skips costs nothing.
        """
        on_cpu = all(x.device.type == "cpu" for x in images.values())
        shapes = {domain: x.shape for domain, x in images.items()}
        return self.follow(images, self.route(shapes, paths, CPU_CALL_BYTES if on_cpu else None))

    def route(
        self,
        shapes: Mapping[str, torch.Size],
        paths: Mapping[str, Path],
        call_bytes: int | None = None,
    ) -> Route:
        """The calls of nodes that lead images along paths.

        shapes: of the images, [n, 3, H, W], per domain.
        call_bytes: of a node's widest features, above which a call of several domains is made
        several; None, and always where batch norm is over them all: one call.
        """
        last = len(self.space.layers)
        stops: list[Mapping[str, Block | str]] = [dict.fromkeys(shapes, STEM)]
        stops += [
            {domain: paths[domain][layer.index] for domain in shapes} for layer in self.space.layers
        ]
        stops += [dict.fromkeys(shapes, HEAD)]
        limit = call_bytes if self.batch_norm == "per_domain" else None
        route: list[Call] = []
        for layer, stop in zip(range(-1, last + 1), stops, strict=True):
            # images of one size are of one size at every layer: what can be skipped has no stride
            together: dict[tuple[str, torch.Size], list[str]] = {}
            for domain, block in stop.items():
                if block != ZERO:
                    key = self._node(layer, block, domain)
                    together.setdefault((key, shapes[domain][2:]), []).append(domain)
            for (key, size), members in together.items():
                widest = 4 * self._widest(layer, stop[members[0]], size)
                of = [widest * shapes[domain][0] for domain in members]
                route += [(key, part) for part in in_parts(members, of, limit)]
        return tuple(route)

    def _widest(self, layer: int, block: Block | str, size: Sequence[int]) -> int:
        """Values of a node's widest features, of one image [H, W] of the network's."""
        space, (height, width) = self.space, size
        strides = [space.stem_stride, *(of.stride for of in space.layers)]
        for stride in strides[: max(layer + 1, 1)]:
            height, width = -(-height // stride), -(-width // stride)
        if isinstance(block, Block):
            channels = space.layers[layer].in_width * block.expansion
        else:
            channels = space.stem_width if block == STEM else space.head_width
        return channels * height * width

    def follow(self, images: Mapping[str, Tensor], route: Route) -> dict[str, Tensor]:
        """Images [n, 3, H, W] per domain -> logits [n, classes] per domain, by a route."""
        groups = {d: _Group(Company((d,), (len(x),)), x) for d, x in images.items()}
        for key, members in route:
            group = _gather(members, groups)
            after = _Group(group.company, self.call_node(key, group.features, group.company))
            for domain in members:
                groups[domain] = after
        return self._classify(groups)

    def call_node(self, key: str, x: Tensor, company: Company) -> Tensor:
        """What the node of that key makes of features [n_1 + ... + n_G, C, H, W]."""
        made: Tensor = self.nodes[key](x, company)
        return made

    @torch.no_grad()
    def inherit(self, other: MultiPathNetwork, like: Mapping[str, str] | None = None) -> None:
        """Copies the weights of the nodes, and the users of them, that both networks have.

        Running statistics too, where both keep them. like: domain -> domain of the other's, whose
        batch norm it is to have; a domain that it does not name has its own.
        """
        theirs = dict(other.nodes.named_modules())
        for name, module in self.nodes.named_modules():
            if name not in theirs:
                continue
            if isinstance(module, DomainBatchNorm):
                module.inherit(theirs[name], like or {})
            else:
                given = dict(_own_tensors(theirs[name]))
                for key, tensor in _own_tensors(module):
                    if key in given:
                        tensor.copy_(given[key])
        for domain, head in self.heads.items():
            if domain in other.heads:
                head.load_state_dict(other.heads[domain].state_dict())

    def _tied_block(self, node: Node, norm: Norm) -> TiedBlock:
        """The block of a node, as a part of its layer's (and owner's) largest."""
        assert isinstance(node.block, Block)
        largest = Node(node.layer, self.space.largest_block, node.owner)
        if largest.key not in self.largest:
            self.largest[largest.key] = build_node(self.space, largest, norm)
        return TiedBlock(cast(InvertedResidual, self.largest[largest.key]), node.block)

    def _node(self, layer: int, block: Block | str, domain: str) -> str:
        """Name of the node that a domain visits."""
        return Node(layer, block, domain if self.private else None).key

    def _classify(self, groups: Mapping[str, _Group]) -> dict[str, Tensor]:
        logits = {}
        for group in {id(group): group for group in groups.values()}.values():
            pooled = _Group(group.company, group.features.mean((2, 3)))
            for domain, features in pooled.parts.items():
                logits[domain] = self.heads[domain_key(domain)](features)
        return {domain: logits[domain] for domain in groups}


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers of a module itself."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _gather(members: tuple[str, ...], groups: Mapping[str, _Group]) -> _Group:
    """The features of `members` as one group; without a copy where they are one already."""
    group = groups[members[0]]
    # some may have gone on through a layer that the first one skipped
    if group.company.domains == members and all(groups[d] is group for d in members):
        return group
    parts = [groups[domain].parts[domain] for domain in members]
    company = Company(members, tuple(len(part) for part in parts))
    return _Group(company, parts[0] if len(parts) == 1 else torch.cat(parts))


def build_node(space: SearchSpace, node: Node, norm: Norm) -> nn.Module:
    """The module of a node: stem, head convolution, or a block of its layer."""
    first, last = space.stages[0], space.stages[-1]
    if node.block == STEM:
        return ConvNormAct(3, space.stem_width, 3, space.stem_stride, first.activation, norm)
    if node.block == HEAD:
        return ConvNormAct(last.width, space.head_width, 1, 1, last.activation, norm)
    assert isinstance(node.block, Block)
    layer: Layer = space.layers[node.layer]
    return InvertedResidual(layer, node.block, norm)


def _initialise(network: nn.Module) -> None:
    """Convolutions by their fan-out (He et al., 2015); small heads; batch norm as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
