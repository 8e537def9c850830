"""Runs a function on two ranks, each a process of its own, joined by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing


def _run(rank: int, function: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        torch.save(function(rank, *arguments), f"{folder}/rank{rank}")
    finally:
        dist.destroy_process_group()


def on_two_ranks(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What function(rank, *arguments) gives on each rank; it is a module's own function."""
    multiprocessing.start_processes(
        _run, (function, str(folder), arguments), nprocs=2, start_method="fork"
    )
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]
