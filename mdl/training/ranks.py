"""What all ranks have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from mdl.errors import UserError


def mean_over_ranks(values: Tensor) -> Tensor:
    """The same on all ranks; the values themselves where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def one_device(world_size: int) -> None:
    """Raises UserError where a search was given several."""
    if world_size > 1:
        raise UserError(
            f"A search runs on one device so far; this one was given {world_size}. "
            "Set trainer.devices=1 and trainer.num_nodes=1."
        )
