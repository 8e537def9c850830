"""What all ranks have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch import distributed as dist

from mdl.networks.rank_norm import several_ranks


def mean_over_ranks(values: Tensor) -> Tensor:
    """The same on all ranks; the values themselves where there is one."""
    if not several_ranks():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def mean_gradients_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients become their means over ranks, in one reduction; what has none keeps none.

    All ranks have gradients of the same parameters, as they do on the same paths.
    """
    if not several_ranks():
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def check_equal_over_ranks(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raises RuntimeError, with the ranks' numbers, where these are not the same to the bit."""
    if not several_ranks():
        return
    # of the bits: sums of numbers could agree, or differ, by rounding
    sums = [of.detach().contiguous().view(torch.int32).sum() for of in tensors.values()]
    own = torch.stack(sums)
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    for rank, other in enumerate(every):
        if not other.equal(every[0]):
            names = [
                n for n, same in zip(tensors, (other == every[0]).tolist(), strict=True) if not same
            ]
            raise RuntimeError(
                f"At step {step} rank {rank} no longer holds the numbers of rank 0: "
                f"{len(names)} of {len(tensors)} tensors differ, first {names[0]}. The last "
                "checkpoint is from before that; start the same command again to go on from it."
            )


class PathsStrategy(DDPStrategy):
    """Processes and devices as DDP has them, without its wrapper.

    A search takes other paths at every step. DDP would look for unused weights in each backward
    pass and reduce zeros for all of them; here all ranks take the same paths, and the module
    itself reduces the gradients that there are (`mean_gradients_over_ranks`).
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        for tensor in self.model.state_dict(keep_vars=True).values():
            dist.broadcast(tensor.detach(), 0)
