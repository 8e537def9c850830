"""Runs a function, or a command, on two ranks, each a process of its own, joined by gloo."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

from mdl import fit
from mdl.command import run_command


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


TWO_NODES = ["trainer.num_nodes=2", "trainer.accelerator=cpu", "trainer.threads=1"]


def _command(
    rank: int, words: list[str], port: int, log: Path, fault: Callable[[int], Any]
) -> None:
    sys.stdout = sys.stderr = log.open("w")
    # what a launcher tells its processes
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"NODE_RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    sys.argv = ["mdl.fit", *words, *TWO_NODES]
    fault(rank)
    status = run_command(fit.main)
    sys.stdout.flush()
    os._exit(status)


def fit_on_two_nodes(
    words: list[str], folder: Path, fault: Callable[[int], Any] = lambda rank: None
) -> list[tuple[int | None, str]]:
    """Status and output of `mdl.fit` on two nodes of one device, one after the other's end.

    fault: is called in each process before it begins. One that was stopped stays so until the
    other has ended, as with a launcher that looks after it; it has no status.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    fork = multiprocessing.get_context("fork")
    logs = [folder / f"log{rank}" for rank in range(2)]
    nodes = [
        fork.Process(target=_command, args=(rank, words, port, log, fault))
        for rank, log in enumerate(logs)
    ]
    for node in nodes:
        node.start()
    try:
        for _ in range(1200):
            wait([node.sentinel for node in nodes if node.is_alive()], 1)
            alive = [node for node in nodes if node.is_alive()]
            if not alive or (len(alive) == 1 and _stopped(alive[0].pid)):
                break
        found = [None if node.is_alive() else node.exitcode for node in nodes]
    finally:
        for node in nodes:
            if node.is_alive():
                os.kill(node.pid, signal.SIGKILL)
            node.join()
    return [(status, log.read_text()) for status, log in zip(found, logs, strict=True)]


def _sleep_at_step_5() -> None:
    """`python -m tests.on_ranks SECONDS SECONDS WORDS...`: `mdl.fit` whose ranks then sleep."""
    from tests.test_faults import at_step  # which imports much else

    seconds = float(sys.argv[1 + int(os.environ.get("LOCAL_RANK", 0))])
    at_step(5, lambda: time.sleep(seconds))
    sys.exit(run_command(lambda words: fit.main(words[2:])))


def _stopped(process: int) -> bool:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"


if __name__ == "__main__":
    _sleep_at_step_5()
