"""What all ranks have in common."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """The same on all ranks; the values themselves where there is one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
