"""What an architecture costs, and what its alternatives would: the published table's columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mdl.networks.cost import CostTable, macs_of_all_domains, macs_of_one_image
from mdl.networks.parameters import Parameters, ParameterTable
from mdl.space.architecture import Architecture
from mdl.space.search_space import Block, Path


@dataclass(frozen=True)
class NetworkCost:
    """Parameters, what is shared counted once, and multiply-adds.

    macs: one image of each domain on its own path, summed.
    one_image_macs: one image sent through all domains, common work done once.
    path_macs: domain -> one image of it.
    """

    parameters: Parameters
    macs: int
    one_image_macs: int
    path_macs: Mapping[str, int]


@dataclass(frozen=True)
class Comparison:
    """A multi-path network beside its alternatives, by construction alone.

    separate: the same paths as single-domain networks that share nothing.
    single_path: one path of the reference block for all domains, a head each; its parameters
    are the 1.0x of the tables.
    """

    multi_path: NetworkCost
    separate: NetworkCost
    single_path: NetworkCost
    reference: Block

    def ratio(self, cost: NetworkCost) -> float:
        return cost.parameters.total / self.single_path.parameters.total


def compare_costs(
    architecture: Architecture,
    num_classes: Mapping[str, int],
    image_size: int | Mapping[str, int],
    batch_norm: str = "per_domain",
) -> Comparison:
    """Costs of an architecture and of its alternatives in the same space.

    num_classes: domain -> classes. image_size: side of the square input, px,
    of all domains or by domain.
    """
    space, table = architecture.space, CostTable(architecture.space, image_size, num_classes)
    parameters = ParameterTable(space, num_classes, batch_norm)
    reference = space.reference_block
    common = {domain: space.uniform_path(reference) for domain in num_classes}

    def cost(paths: Mapping[str, Path], private: bool) -> NetworkCost:
        return _cost(paths, private, table, parameters, batch_norm)

    paths = {domain: architecture.paths[domain] for domain in num_classes}
    return Comparison(
        multi_path=cost(paths, private=False),
        separate=cost(paths, private=True),
        single_path=cost(common, private=False),
        reference=reference,
    )


def _cost(
    paths: Mapping[str, Path],
    private: bool,
    table: CostTable,
    parameters: ParameterTable,
    batch_norm: str,
) -> NetworkCost:
    shares_work = batch_norm == "shared" and not private
    return NetworkCost(
        parameters=parameters.count(paths, private),
        macs=macs_of_all_domains(paths, table),
        one_image_macs=macs_of_one_image(paths, table, shares_work),
        path_macs={domain: table.path_macs(path, domain) for domain, path in paths.items()},
    )
