"""Ranks that hang, are killed or fail: the others say which one, all end, and the run goes on."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from mdl.errors import UserError
from mdl.training.base import MultiDomainModule
from mdl.training.checkpoints import AtomicCheckpointIO
from mdl.training.rank_watch import _UNSAID, RankWatch
from mdl.training.ranks import WatchedStrategy
from tests.on_ranks import fit_on_two_nodes
from tests.test_faults import WORDS, at_step, step_of, words_for
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, run_of, weights
from tests.test_ranks import LONG, TWO, Started, begun

# minutes: long enough for a step on two busy cores
HANG = ["trainer.timeout=0.3"]


def ranks_of(started: subprocess.Popen) -> list[int]:
    """The processes of ranks 0 and 1."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    (other,) = [
        int(child)
        for child in children
        if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes()
    ]
    return [started.pid, other]


def gone(process: int) -> bool:
    """Whether a process has ended, or only waits to be asked how."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def assert_all_end(processes: list[int]) -> None:
    for _ in range(100):
        if all(map(gone, processes)):
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {[process for process in processes if not gone(process)]}")


@pytest.mark.parametrize(
    ("recipe", "rank", "number"), [(RETRAIN, 0, signal.SIGSTOP), (SEARCH, 1, signal.SIGKILL)]
)
def test_a_lost_rank_of_one_machine_is_named_and_all_end(
    small_run: list[str], recipe: str, rank: int, number: signal.Signals
) -> None:
    run = run_of(small_run, "it")
    words = [recipe, *small_run, *WORDS, *LONG, *TWO, *HANG, "network.batch_norm_ranks=own"]
    with begun(words, run) as started:
        processes = ranks_of(started)
        os.kill(processes[rank], number)
        _, error = started.communicate(timeout=120)
        assert_all_end(processes)
    told = "has not gone on for 0.3 minutes" if number == signal.SIGSTOP else "was lost"
    assert f"ank {rank} {told}" in error, error
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert "The same command goes on from the last checkpoint" in error
    assert started.returncode == (-signal.SIGKILL if rank == 0 else 1)
    assert step_of(run) > 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ((3, 600), "Rank 1 has not gone on for 0.3 minutes"),
        ((600, 600), "No rank has taken a batch or a collective for 0.3 minutes"),
    ],
)
def test_a_rank_of_one_machine_that_hangs_and_still_answers_is_named(
    packed: Path, tmp_path: Path, seconds: tuple[int, int], told: str
) -> None:
    """Also where it stood still before the other did; the first rank lives to say it."""
    words = [*map(str, seconds), *words_on_two(RETRAIN, packed, tmp_path), *TWO, *HANG]
    with Started("tests.on_ranks", words) as started:
        _, error = started.communicate(timeout=200)
    assert told in error and "at step 5. All " in error, error
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert started.returncode == 1
    assert step_of(tmp_path / "it") == 4


def watch_of(rank: int, ranks: int, store: dist.Store, **given: Any) -> RankWatch:
    given = {"children": {}, "parent": None} | given
    watch = RankWatch(rank, ranks, 18.0, lambda: 5, **given)
    watch._store = store
    return watch


def test_a_rank_that_its_own_watch_ended_is_named_by_the_one_that_started_it() -> None:
    """Status 2 is of a rank that said why itself, in `mdl.command`."""
    for status, told in {_UNSAID: "Rank 1 has not gone on for 0.3 minutes", 2: None}.items():
        child = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
        child.wait()
        watch = watch_of(0, 2, dist.HashStore(), children={1: child})
        sentence, ends_with = watch.lost_told()
        assert (sentence is None) if told is None else (told in str(sentence))
        assert ends_with == (2 if told is None else 1)


def test_the_first_status_that_a_rank_ends_with_is_that_of_all() -> None:
    store = dist.HashStore()
    watch_of(1, 3, store).say_ended(2)
    watch_of(2, 3, store).say_ended(1)
    assert store.check(["watch/ended"])  # else `get` waits for it
    assert store.get("watch/ended") == b"2"


def test_a_first_rank_with_children_tells_other_machines_that_it_ends() -> None:
    strategy = WatchedStrategy(0.3)
    for code, status in {2: b"2", 1: b"1"}.items():
        store = dist.HashStore()
        # not waited for: rank 1 is its own child, rank 2 has heard
        strategy.watch = watch_of(0, 3, store, children={1: None})
        store.set("watch/heard/2", "")
        strategy.watch.leave()
        strategy.say_ended(SystemExit(code))
        assert store.check(["watch/ended"])  # else `get` waits for it
        assert store.get("watch/ended") == status
    store = dist.HashStore()
    strategy.watch = watch_of(1, 2, store, parent=0)
    strategy.say_ended(UserError("the one that started it says this"))
    assert not store.check(["watch/ended"])


def test_rank_0_is_not_blamed_for_a_store_that_the_agent_of_torchrun_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = watch_of(1, 3, dist.HashStore())
    watch._asked = 0.0  # long ago
    monkeypatch.setattr(watch, "_position", lambda: (0, 0))
    assert watch.hanging() == [0]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert watch.hanging() == [0, 1, 2]


def test_a_rank_that_is_lost_leaves_the_first_the_time_to_write_its_checkpoint(
    packed: Path, tmp_path: Path
) -> None:
    words = [*words_on_two(RETRAIN, packed, tmp_path), "trainer.validation_interval=100"]

    def at_second_save(rank: int) -> None:
        original, saved = WatchedStrategy.save_checkpoint, []
        write = AtomicCheckpointIO.save_checkpoint

        def lost(self: WatchedStrategy, checkpoint: Any, *given: Any, **named: Any) -> None:
            saved.append(checkpoint["global_step"])
            if rank == 1 and len(saved) == 2:
                used_up()
            original(self, checkpoint, *given, **named)

        def slow(self: AtomicCheckpointIO, *given: Any, **named: Any) -> None:
            if len(saved) == 2:
                time.sleep(12)
            write(self, *given, **named)

        WatchedStrategy.save_checkpoint = lost  # type: ignore[method-assign]
        AtomicCheckpointIO.save_checkpoint = slow  # type: ignore[method-assign]

    ended = fit_on_two_nodes([*words, *HANG], tmp_path / "logs", at_second_save)
    assert [status for status, _ in ended] == [2, 2], ended
    assert step_of(tmp_path / "it") == 6
    assert step_of(tmp_path / "it", "previous.ckpt") == 3


def words_on_two(recipe: str, packed: Path, runs: Path) -> list[str]:
    # fewer collectives: each waits for two processes on cores that others use too
    return [*words_for(recipe, packed, runs), "network.batch_norm_ranks=own"]


def on_rank(which: int, step: int, fault: Callable[[], object]) -> Callable[[int], object]:
    return lambda rank: at_step(step, fault) if rank == which else None


@pytest.mark.parametrize(("recipe", "rank"), [(SEARCH, 1), (RETRAIN, 0)])
def test_a_rank_that_hangs_is_named_by_the_other_and_the_run_goes_on(
    packed: Path, tmp_path: Path, recipe: str, rank: int
) -> None:
    """The one by its silence, the other, whose process still answers, by how far it has come."""
    words = words_on_two(recipe, packed, tmp_path)
    stop = [lambda: time.sleep(600), lambda: os.kill(os.getpid(), signal.SIGSTOP)][rank]
    ended = fit_on_two_nodes([*words, *HANG], tmp_path / "logs", on_rank(rank, 5, stop))
    status, log = ended[1 - rank]
    assert status == 1 and "Traceback" not in log
    assert f"Rank {rank} has not gone on for 0.3 minutes" in log
    assert "the others wait for it, at step 5" in log
    assert ended[rank][0] == (None if rank else 1)
    assert "error: " not in ended[rank][1]
    assert step_of(tmp_path / "it") == (4 if recipe == RETRAIN else 3)
    if recipe == RETRAIN:
        return  # goes on as any other
    for runs in (tmp_path, tmp_path / "unbroken"):
        for status, log in fit_on_two_nodes([*words, f"runs_dir={runs}"], tmp_path / "logs"):
            assert status == 0, log
    assert_same_run(tmp_path / "it", tmp_path / "unbroken" / "it")


def used_up() -> None:
    torch.empty(2**60)


def full() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("recipe", "rank", "fault", "told"),
    [
        (RETRAIN, 1, used_up, "Out of memory at step 5"),
        (SEARCH, 0, full, "last.ckpt could not be written: File too large"),
    ],
)
def test_what_one_rank_meets_it_says_and_the_other_ends_with_its_status(
    packed: Path, tmp_path: Path, recipe: str, rank: int, fault: Callable[[], None], told: str
) -> None:
    words = words_on_two(recipe, packed, tmp_path)
    ended = fit_on_two_nodes([*words, *HANG], tmp_path / "logs", on_rank(rank, 5, fault))
    assert [status for status, _ in ended] == [2, 2], ended
    assert told in ended[rank][1]
    assert "error: " not in ended[1 - rank][1]
    assert not any("Traceback" in log for _, log in ended)
    assert step_of(tmp_path / "it") == (4 if recipe == RETRAIN else 3)


def test_a_loss_of_one_rank_that_is_not_finite_ends_all_with_the_domain_named(
    packed: Path, tmp_path: Path
) -> None:
    original = MultiDomainModule.losses

    def poisoned(self: MultiDomainModule, logits: Any, batch: Any) -> torch.Tensor:
        losses = original(self, logits, batch)
        return losses * torch.tensor([1.0, float("nan"), 1.0]) if self.global_step == 5 else losses

    def poison(rank: int) -> None:
        if rank == 1:
            MultiDomainModule.losses = poisoned  # type: ignore[method-assign]

    ended = fit_on_two_nodes(words_on_two(SEARCH, packed, tmp_path), tmp_path / "logs", poison)
    assert [status for status, _ in ended] == [2, 2], ended
    for _, log in ended:
        assert "The loss of domain 'cars' was not finite at step 5" in log
        assert "Traceback" not in log
    assert all(value.isfinite().all() for value in weights(tmp_path / "it").values())
    assert step_of(tmp_path / "it") == 3
