"""Widths with which one path for all domains weighs what another network does."""

from __future__ import annotations

from collections.abc import Mapping

from mdl.errors import UserError
from mdl.networks.parameters import ParameterTable
from mdl.space.search_space import Path, SearchSpace

TOLERANCE = 0.02
_HALVINGS = 30


def widened_to(
    total: int,
    space: SearchSpace,
    path: Path,
    num_classes: Mapping[str, int],
    batch_norm: str,
    private: bool = False,
) -> SearchSpace:
    """The space, all widths multiplied by one factor, in which `path` weighs `total` parameters.

    total: with heads and norm, of the network in which all domains take `path`.
    num_classes: domain -> classes. private: whether each domain has the nodes for itself.

    Raises UserError where whole widths come no nearer than `TOLERANCE`.
    """
    paths = dict.fromkeys(num_classes, path)

    def weigh(widened: SearchSpace) -> int:
        return ParameterTable(widened, num_classes, batch_norm).count(paths, private).total

    low, high = 0.0, 1.0  # parameters grow with the factor
    while weigh(space.widened(high)) < total:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if weigh(space.widened(middle)) < total:
            low = middle
        else:
            high = middle
    nearest = min((space.widened(low), space.widened(high)), key=lambda s: abs(weigh(s) - total))
    if abs((found := weigh(nearest)) / total - 1) > TOLERANCE:
        raise UserError(
            f"No factor of the space's widths gives one common path {total:,} parameters within "
            f"{TOLERANCE:.0%}; the nearest has {found:,}. Expected a space with greater widths, "
            "or another retrain.common_file."
        )
    return nearest
