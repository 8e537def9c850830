"""Ranks that hang, are killed or fail: the others say which one, all end, and the run goes on."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdl.training.base import MultiDomainModule
from tests.on_ranks import fit_on_two_nodes
from tests.test_faults import WORDS, at_step, step_of, words_for
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, run_of, weights
from tests.test_ranks import LONG, TWO, begun

# minutes: long enough for a step on two busy cores
HANG = ["trainer.timeout=0.1"]


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


@pytest.mark.parametrize(
    ("recipe", "rank", "number"), [(RETRAIN, 0, signal.SIGSTOP), (SEARCH, 1, signal.SIGKILL)]
)
def test_a_lost_rank_of_one_machine_is_named_and_all_end(
    small_run: list[str], recipe: str, rank: int, number: signal.Signals
) -> None:
    run = run_of(small_run, "it")
    started = begun(
        [recipe, *small_run, *WORDS, *LONG, *TWO, *HANG, "network.batch_norm_ranks=own"], run
    )
    processes = ranks_of(started)
    os.kill(processes[rank], number)
    _, error = started.communicate(timeout=120)
    told = "has not gone on for 0.1 minutes" if number == signal.SIGSTOP else "was lost"
    assert f"ank {rank} {told}" in error, error
    assert error.count("error: ") == 1 and "Traceback" not in error
    assert "The same command goes on from the last checkpoint" in error
    assert started.returncode == (-signal.SIGKILL if rank == 0 else 1)
    for _ in range(100):
        if all(map(gone, processes)):
            break
        time.sleep(0.1)
    assert all(map(gone, processes))
    assert step_of(run) > 0


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
    stop = [lambda: time.sleep(60), lambda: os.kill(os.getpid(), signal.SIGSTOP)][rank]
    ended = fit_on_two_nodes([*words, *HANG], tmp_path / "logs", on_rank(rank, 5, stop))
    status, log = ended[1 - rank]
    assert status == 1 and "Traceback" not in log
    assert f"Rank {rank} has not gone on for 0.1 minutes" in log
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
