"""Runs that are killed at any moment end as those that never were, to the bit."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mdl import fit
from tests.chaos.lives import DEATHS, Chronicle, assert_whole, live_until_done, written
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, run_of
from tests.test_ranks import TWO, children, fitted

ABDP = "callbacks.abdp={class: callbacks.abdp.ABDP, start: 5}"
LONG = [
    "trainer.max_steps=120",
    "trainer.checkpoint_interval=4",
    "trainer.validation_interval=30",
    "search.warmup_fraction=0.2",
]
FOUND = "RUNS/mpnas_search"  # by a search of the same space, made before
SIZES = ["search.target.params=3950", "search.target.macs=null"]
CASES = {
    "a search": [SEARCH, ABDP],
    "a search on tied blocks, two workers": [
        SEARCH,
        "search.block_weights=tied",
        "data.workers=2",
    ],
    "a search on a frozen super-network": [
        SEARCH,
        "recipes/frozen_search.yaml",
        f"search.supernet_file={FOUND}/checkpoints/last.ckpt",
        *SIZES,
    ],
    "a round of finalists": [
        SEARCH,
        "recipes/finalists.yaml",
        f"search.controllers_file={FOUND}/checkpoints/last.ckpt",
        *SIZES,
    ],
    "a retraining": [RETRAIN, ABDP, "retrain.paths=random"],
    "a retraining by GradNorm, two workers": [
        RETRAIN,
        "callbacks.abdp=null",
        "balancing.method=gradnorm",
        "retrain.paths=common",
        "data.workers=2",
    ],
}


def kill(words: list[str], name: str, kills: int, seed: int, tmp_path: Path) -> str:
    """Kills runs, compares each to one that was never killed, and tells of it in a table's row."""
    fit.main([*words, "name=unbroken"])
    unbroken = run_of(words, "unbroken")
    chronicle, dice, runs = Chronicle(), random.Random(seed), 0
    while chronicle.kills < kills:
        run = unbroken.with_name(f"killed{runs}")
        log = tmp_path / f"log{runs}"
        live_until_done([*words, f"name={run.name}"], run, log, chronicle, dice, kills, seconds=4)
        assert_same_run(run, unbroken)
        runs += 1
    deaths = [str(chronicle.deaths[kind]) for kind in DEATHS]
    recovery = statistics.median(chronicle.recoveries) if chronicle.recoveries else float("nan")
    cells = [name, *deaths, str(chronicle.partial), str(runs), f"{recovery:.1f} s"]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("recipe", [SEARCH, RETRAIN])
def test_a_run_killed_at_any_moment_ends_as_if_it_had_not(
    small_run: list[str], tmp_path: Path, recipe: str
) -> None:
    words = [recipe, *small_run, *LONG, ABDP, "retrain.paths=common", "trainer.max_steps=60"]
    print(kill(words, recipe, 4, 1, tmp_path))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", list(CASES))
def test_a_run_killed_over_and_over_ends_as_if_it_had_not(
    small_run: list[str], tmp_path: Path, name: str, seed: int
) -> None:
    fit.main([SEARCH, *small_run])
    files = [word for word in CASES[name] if "=" not in word]
    own = [word.replace("RUNS", str(tmp_path / "runs")) for word in CASES[name] if "=" in word]
    print("\n" + kill([*files, *small_run, *LONG, *own], name, 12, seed, tmp_path))


@pytest.mark.chaos
@pytest.mark.parametrize("recipe", [SEARCH, RETRAIN])
def test_two_ranks_of_which_one_is_killed_end_as_if_it_had_not(
    small_run: list[str], tmp_path: Path, recipe: str
) -> None:
    """The others end by themselves, and the same command goes on."""
    words = [recipe, *small_run, *LONG, *TWO, ABDP, "retrain.paths=common", "name=killed"]
    run, dice, kills = run_of(small_run, "killed"), random.Random(0), 0
    while kills < 6:
        started = subprocess.Popen([sys.executable, "-m", "mdl.fit", *words])
        before = written(run)
        while kills % 3 and written(run) == before and started.poll() is None:
            time.sleep(0.05)  # every third one is killed while it starts
        time.sleep(dice.uniform(0, 2))
        ranks = [started.pid, *children(started.pid, b"LOCAL_RANK=1")]
        if started.poll() is None:
            os.kill(dice.choice(ranks), signal.SIGKILL)
        status = started.wait(timeout=300)
        for rank in ranks:
            ended(rank)
        assert_whole(run)
        if status == 0:
            break
        kills += 1
    assert kills
    fitted(words)
    fitted([*words[:-1], "name=unbroken"])
    assert_same_run(run, run_of(small_run, "unbroken"))
    print(f"\n| {recipe} on two ranks | {kills} |")


def ended(process: int) -> None:
    """Waits until a process is no more."""
    for _ in range(1200):
        if not Path(f"/proc/{process}").exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"rank {process} goes on")
