"""What all ranks have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import distributed_c10d

from mdl.errors import ProcessLost, UserError
from mdl.networks.rank_norm import several_ranks
from mdl.training.rank_watch import RankWatch


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


_STARTED_BY = "MDL_RANK_STARTED_BY"  # tells a rank that its parent is a rank too, and no shell


class _Launcher(_SubprocessScriptLauncher):
    """Starts the ranks of this machine; `RankWatch` watches them.

    Lightning's own observer kills the process of rank 0 within five seconds after another one
    ended, whatever that one had to say or rank 0 still has to write.
    """

    def launch(
        self, function: Callable, *args: Any, trainer: L.Trainer | None = None, **kwargs: Any
    ) -> Any:
        self.cluster_environment.validate_settings(
            num_devices=self.num_processes, num_nodes=self.num_nodes
        )
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_STARTED_BY] = str(os.getpid())
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class WatchedStrategy(DDPStrategy):
    """DDP whose ranks end, with a sentence, when one of them is lost or hangs.

    timeout_minutes: of standing still, after which a rank is given up.
    """

    def __init__(self, timeout_minutes: float, **ddp: Any) -> None:
        # a minute more, so that the watch, which knows who it was, comes first
        super().__init__(timeout=timedelta(minutes=timeout_minutes + 1), **ddp)
        self.timeout_minutes = timeout_minutes
        self.watch: RankWatch | None = None
        self.lost: ProcessLost | SystemExit | None = None  # what an error of the network means

    def _configure_launcher(self) -> None:
        if self._start_method != "popen":
            super()._configure_launcher()
            return
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        self.set_world_ranks()
        self.watch = self._watch()
        self.watch.start()
        super().setup_environment()
        store: Any = distributed_c10d._get_default_store()
        self.watch.met(store.clone())

    def _watch(self) -> RankWatch:
        first = self.node_rank * self.num_processes
        started = self._launcher.procs if isinstance(self._launcher, _Launcher) else []
        by_a_rank = os.environ.get(_STARTED_BY) == str(os.getppid())
        return RankWatch(
            self.global_rank,
            self.world_size,
            self.timeout_minutes * 60,
            lambda: self.lightning_module.trainer.global_step if self.lightning_module else 0,
            {first + at: process for at, process in enumerate(started, start=1)},
            first if by_a_rank else None,
        )

    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        if self.watch is not None:
            self.watch.batches += 1
        return super().batch_to_device(batch, device, dataloader_idx)

    def on_exception(self, exception: BaseException) -> None:
        """Finds out who was lost, where the network says that someone was."""
        if self.watch is None:
            return
        self.watch.leave()
        if _of_the_network(exception):
            found = self.watch.wait_for_loss()
            sentence, status = self.watch.lost_told()
            if not found and self.watch.parent is None:
                words = str(exception).partition("\n")[0]
                sentence = (
                    f"The process of another rank was lost ({words}). What that one says comes "
                    "first; else the same command goes on from the last checkpoint."
                )
            self.lost = SystemExit(status) if sentence is None else ProcessLost(sentence)
        self.watch.kill_children()

    def say_ended(self, error: BaseException) -> None:
        """To be called with what the command ends with: ranks elsewhere then end with its status.

        A rank that another one started need not: that one finds out, and says it.
        """
        if self.watch is not None and self.watch.parent is None:
            status = 2 if isinstance(error, UserError) else 1
            if isinstance(error, SystemExit):  # what another rank ended with
                status = int(str(error.code))
            self.watch.say_ended(status)

    def save_checkpoint(self, *given: Any, **named: Any) -> None:
        """Where another rank is lost meanwhile, the watch lets this one finish the file."""
        assert self.watch is not None
        self.watch.writing = True
        try:
            super().save_checkpoint(*given, **named)
        finally:
            self.watch.writing = False

    def teardown(self) -> None:
        try:
            super().teardown()  # waits for the device, and may so for ranks that are lost
        finally:
            if self.watch is not None:
                self.watch.stop()


def _of_the_network(error: BaseException) -> bool:
    # gloo's errors have no class of their own
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


class PathsStrategy(WatchedStrategy):
    """Processes and devices as DDP has them, without its wrapper.

    A search takes other paths at every step. DDP would look for unused weights in each backward
    pass and reduce zeros for all of them; here all ranks take the same paths, and the module
    itself reduces the gradients that there are (`mean_gradients_over_ranks`).
    """

    def configure_ddp(self) -> None:
        assert self.model is not None
        for tensor in self.model.state_dict(keep_vars=True).values():
            dist.broadcast(tensor.detach(), 0)
