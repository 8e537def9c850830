"""Ends a rank's process, with a sentence, when another rank is lost or no longer answers.

A collective waits for all ranks. gloo breaks it off after a time, without a name; NCCL's cannot be
broken off by the thread that waits for it. So two threads of each rank watch: one tells the others,
through the store that the ranks met at, how far its rank has come, and reads how far they have;
the other looks at the clock, and is not held up where the store itself no longer answers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import distributed as dist
from torch.distributed.distributed_c10d import Store

from mdl.errors import GOES_ON

_GRACE = 5.0  # seconds in which a process may end by itself
_UNSAID = 70  # status of a rank that its watch ended without a word: its parent has to say why


@dataclass
class Place:
    """How far a rank has come, by what it told last."""

    told: str = ""
    since: float = 0.0  # when that was first read
    moved: float = 0.0  # when the rank itself last went on
    position: tuple[int, ...] = (0, 0)  # collectives, batches


class RankWatch:
    """Watches the other ranks from within one.

    rank, ranks: which one, of how many. timeout: seconds of standing still after which a rank is
    given up. step: gives the steps that this rank has made.
    children: processes of other ranks that this one started, by rank.
    parent: the rank whose process started this one, or None.
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        timeout: float,
        step: Callable[[], int],
        children: dict[int, subprocess.Popen],
        parent: int | None,
    ) -> None:
        self.rank, self.ranks, self.timeout, self.step = rank, ranks, timeout, step
        self.children, self.parent = children, parent
        self.interval = min(5.0, timeout / 10)
        self.quiet = max(3 * self.interval, timeout / 2)
        self.patience = timeout + max(timeout / 2, 2 * _GRACE)  # of a rank that need not say it
        self.batches = 0
        self.writing = False  # a checkpoint, now
        self._parent_process = os.getppid()
        self._places = [Place() for _ in range(ranks)]
        self._asked: float | None = None  # when the store was asked what it has not yet answered
        self._store: Store | None = None
        self._ended: int | None = None  # the status of a rank that said that it ends
        self._blamed: list[int] = []  # who hangs, as first found
        self._leaving = False
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """To be called before ranks meet: one that is lost by then would be waited for."""
        self._start(self._look)

    def met(self, store: Store) -> None:
        """To be called when the ranks have met, with a connection of this watch's own."""
        now = time.monotonic()
        self._places = [Place(since=now, moved=now) for _ in range(self.ranks)]
        self._store = store
        self._start(self._tell)

    def _start(self, what: Callable[[], None]) -> None:
        thread = threading.Thread(target=what, daemon=True, name=f"rank-watch{what.__name__}")
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(2 * self.interval)

    def leave(self) -> None:
        """To be called when this process ends by an error: it is let end by itself."""
        self._leaving = True
        self._hear()

    def say_ended(self, status: int) -> None:
        """Tells ranks of other launchers that this one ends, and how; who is first counts."""
        try:
            assert self._store is not None
            self._store.compare_set("watch/ended", "", str(status))
            if self.rank != 0 or not self._leaving:
                return  # outside of Lightning's loops nobody listens any more
            # its own children have ended by now
            others = [rank for rank in range(self.ranks) if rank not in self.children]
            heard = [f"watch/heard/{rank}" for rank in others]
            for _ in range(int(2 * self.interval / 0.1)):
                if self._store.check(heard):
                    break
                time.sleep(0.1)  # the store ends with rank 0
        except RuntimeError:
            pass  # the store is gone, and with it the rank that held it

    def _hear(self) -> None:
        try:
            assert self._store is not None
            self._store.set(f"watch/heard/{self.rank}", "")
        except RuntimeError:
            pass  # as above

    def kill_children(self) -> None:
        for process in self.children.values():
            if process.poll() is None:
                process.kill()  # one that was stopped hears nothing else

    # -- one thread

    def _tell(self) -> None:
        told = 0
        while not self._stopped.wait(self.interval):
            told += 1
            self._asked = time.monotonic()
            try:
                self._exchange(told)
            except RuntimeError:
                return  # the store is gone: who held it is found to be lost, or says why it ended
            self._asked = None

    def _exchange(self, told: int) -> None:
        assert self._store is not None
        own = " ".join(map(str, [told, *self._position(), self.step()]))
        self._store.set(f"watch/{self.rank}", own)
        for rank in range(self.ranks):
            if rank != self.rank and self._store.check([f"watch/{rank}"]):
                self._read(rank, self._store.get(f"watch/{rank}").decode())
        if self._ended is None and self._store.check(["watch/ended"]):
            self._ended = int(self._store.get("watch/ended"))
            self._hear()

    def _position(self) -> tuple[int, ...]:
        group: Any = dist.group.WORLD
        if group is None:  # taken down before this watch was stopped
            return self._places[self.rank].position
        return group._get_sequence_number_for_group(), self.batches

    def _read(self, rank: int, told: str) -> None:
        place = self._places[rank]
        if told != place.told:
            place.told, place.since = told, time.monotonic()
        _, *position, _ = map(int, told.split())
        self._note(rank, tuple(position))

    def _note(self, rank: int, position: tuple[int, ...]) -> None:
        place = self._places[rank]
        if position != place.position:
            place.position, place.moved = position, time.monotonic()

    # -- the other

    def _look(self) -> None:
        since = None
        while not self._stopped.wait(min(self.interval, 1.0)):
            if self._store is not None:
                self._end_if_hanging()
            if self._leaving or (self.lost() is None and self._ended is None):
                continue
            # the thread that trains finds out too, mostly, and ends as it should
            since = since or time.monotonic()
            if time.monotonic() - since > (self.timeout if self.writing else _GRACE):
                self._end_after_loss()

    def _end_if_hanging(self) -> None:
        """One rank says who hangs, and ends all that it reaches; the others leave it the time."""
        found = self.hanging()
        # kept until this rank moves: others that fall silent from here on have ended
        blamed = self._blamed = (self._blamed or found) if found else []
        if not blamed:
            return
        speaks = min((r for r in range(self.ranks) if r not in blamed), default=0)
        stood = time.monotonic() - self._places[self.rank].moved
        if self.rank != speaks and stood < self.patience:
            return
        # rank 0 that should have spoken may be what was lost
        says = self.rank == speaks or (len(blamed) == self.ranks and self.parent is None)
        status = 1 if says or self.parent is None else _UNSAID
        # a parent that is to speak, and still can, says what became of this rank
        ends_parent = self.parent in blamed and (self.parent != speaks or self._silent(speaks))
        self._end(self._hang_told(blamed) if says else None, status, ends_parent)

    def _silent(self, rank: int) -> bool:
        return time.monotonic() - self._places[rank].since > self.quiet

    def hanging(self) -> list[int]:
        """The ranks that all wait for, where this one has waited for too long; else none."""
        self._note(self.rank, self._position())
        now = time.monotonic()
        if now - self._places[self.rank].moved < self.timeout:
            return []
        everyone = list(range(self.ranks))
        if self._asked is not None and now - self._asked > self.quiet:
            # under torchrun its agent holds the store: nothing is known of the ranks
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                return everyone
            if self.rank != 0:
                return [0]  # it holds the store
        if silent := [rank for rank in everyone if rank != self.rank and self._silent(rank)]:
            return silent
        furthest = max(place.position for place in self._places)
        behind = [rank for rank, place in enumerate(self._places) if place.position < furthest]
        return behind or everyone

    def _hang_told(self, blamed: Sequence[int]) -> str:
        if len(blamed) == self.ranks:
            who = (
                f"No rank has taken a batch or a collective for {self._minutes()}: each waits for "
                "another, or a step or an evaluation takes longer than that, and trainer.timeout "
                "has to be raised;"
            )
        elif len(blamed) == 1:
            who = f"Rank {blamed[0]} has not gone on for {self._minutes()}; the others wait for it,"
        else:
            names = ", ".join(map(str, blamed))
            who = f"Ranks {names} have not gone on for {self._minutes()}; the others wait for them,"
        return f"{who} at step {self.step()}. All of them are ended. {GOES_ON}"

    def _minutes(self) -> str:
        return f"{self.timeout / 60:.3g} minutes (trainer.timeout)"

    def lost(self) -> tuple[int, int | None] | None:
        """A rank whose process has ended, and its status where it is known."""
        for rank, process in self.children.items():
            if process.poll():
                return rank, process.returncode
        if self.parent is not None and os.getppid() != self._parent_process:
            return self.parent, None
        return None

    def lost_told(self) -> tuple[str | None, int]:
        """What is to be said of a rank that was lost, if it did not say so itself; and a status."""
        lost = self.lost()
        if lost is None:
            return None, 1 if self._ended is None else self._ended
        rank, status = lost
        if status == _UNSAID:
            who = f"Rank {rank} has not gone on for {self._minutes()}"
            return f"{who}, at step {self.step()}. All are ended. {GOES_ON}", 1
        if status is not None and status > 0:
            return None, status  # ended by itself, and said why
        how = "" if status is None else f" (signal {signal.Signals(-status).name})"
        if status is None and self.rank > self.parent + 1:  # type: ignore[operator]
            return None, 1  # the first of several says it
        return f"The process of rank {rank} was lost{how}, at step {self.step()}. {GOES_ON}", 1

    def wait_for_loss(self) -> bool:
        """Whether a rank turns out to be lost, or to have ended, within the time of grace."""
        for _ in range(int(_GRACE / 0.1)):
            if self.lost() is not None or self._ended is not None:
                return True
            time.sleep(0.1)
        return False

    def _end_after_loss(self) -> NoReturn:
        sentence, status = self.lost_told()
        self._end(sentence, status, ends_parent=False)

    def _end(self, sentence: str | None, status: int, ends_parent: bool) -> NoReturn:
        """Ends this process, and those of other ranks that it can reach, whatever they do."""
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr, flush=True)
        self.kill_children()
        if ends_parent and os.getppid() == self._parent_process:
            os.kill(self._parent_process, signal.SIGKILL)
        # the thread that trains waits where no exception reaches it
        os._exit(status)
