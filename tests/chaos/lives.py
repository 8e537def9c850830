"""Runs that are killed, over and over, until they come to their end."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mdl.training.checkpoints import read_whole

# forked from a process that has imported all: a life begins within a tenth of a second
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mdl.fit", "callbacks.abdp", "tests.chaos.lives"])

DEATHS = ("at a moment", "at a file", "in a checkpoint's bytes")


@dataclass
class Chronicle:
    """What became of a run that was killed."""

    deaths: Counter[str] = field(default_factory=Counter)
    partial: int = 0  # deaths that left a file half-written
    recoveries: list[float] = field(default_factory=list)  # seconds to the next checkpoint

    def note(self, kind: str, run: Path) -> None:
        self.deaths[kind] += 1
        self.partial += any(run.rglob(".*partial*"))

    @property
    def kills(self) -> int:
        return self.deaths.total()


def live_until_done(
    words: list[str],
    run: Path,
    log: Path,
    chronicle: Chronicle,
    dice: random.Random,
    kills: int,
    seconds: float,
) -> None:
    """Kills `mdl.fit WORDS` until it ends, or there are so many kills; then it is let end.

    Lives are ended in turns by SIGKILL at a random moment of their first `seconds`, by SIGKILL
    before a random one of their operations on files of the run, and by the system in the middle
    of writing a checkpoint. What lies under its final name has to be whole each time.
    """
    while True:
        kind = DEATHS[chronicle.kills % len(DEATHS)] if chronicle.kills < kills else "none"
        arguments = words, str(run), str(log), kind, dice.random(), _size(run)
        begun, before = time.monotonic(), written(run)
        deadline = begun + (dice.uniform(0, seconds) if kind == DEATHS[0] else 300)
        life = _CONTEXT.Process(target=_live, args=arguments)
        life.start()
        recovered = False
        while life.is_alive() and time.monotonic() < deadline:
            life.join(0.02)
            if not recovered and before and written(run) != before:
                recovered = True
                chronicle.recoveries.append(time.monotonic() - begun)
        if life.is_alive():
            life.kill()
            assert kind == DEATHS[0], f"hangs: {log.read_text()}"
        life.join()
        if life.exitcode == 0:
            return
        assert life.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ), log.read_text()
        chronicle.note(kind, run)
        assert_whole(run)


def assert_whole(run: Path) -> None:
    """Checkpoints under their final names can be read."""
    for file in (run / "checkpoints").glob("[!.]*.ckpt"):
        assert "state_dict" in read_whole(file)


def written(run: Path) -> int:
    """When the last checkpoint was written, in ns; 0 for never."""
    last = run / "checkpoints" / "last.ckpt"
    return last.stat().st_mtime_ns if last.is_file() else 0


def _size(run: Path) -> int:
    last = run / "checkpoints" / "last.ckpt"
    return last.stat().st_size if last.is_file() else 0


def _live(words: list[str], run: str, log: str, kind: str, chance: float, size: int) -> None:
    """One life of `python -m mdl.fit WORDS`."""
    from mdl import fit

    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a plain process
    if kind == DEATHS[1]:
        sys.addaudithook(_killing_hook(run, 1 + int(chance * 60)))
    elif kind == DEATHS[2]:
        # where a file grows beyond it the system ends the process, if that does not say otherwise
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit = int((size or 50_000) * chance)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, 20_000), resource.RLIM_INFINITY))
    fit.main(words)
    sys.stdout.flush()


_FILE_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate")


def _killing_hook(run: str, count: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Kills the process before its operation of that number on a file of the run."""
    left = count

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _FILE_EVENTS and str(arguments[0]).startswith(run):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
