"""Runs on two ranks, each a process of its own, against the same runs on one."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mdl import fit
from mdl.command import INTERRUPTED, STOPPED
from mdl.space.architecture import Architecture
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, metrics, run_of, weights

TWO = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.threads=1"]
SMALL = ["callbacks.abdp={class: callbacks.abdp.ABDP, start: 1}", "search.warmup_fraction=0.25"]


def start(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    """`mdl.fit` as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "mdl.fit", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
        check=False,
    )


def fitted(words: list[str]) -> None:
    ended = start(words)
    assert ended.returncode == 0, ended.stderr


def losses(run: Path) -> torch.Tensor:
    """Training losses of all domains, at each record."""
    rows = [line for line in metrics(run) if "train/loss/birds" in line]
    return torch.tensor(
        [[v for k, v in row.items() if k.startswith("train/loss/")] for row in rows]
    )


def assert_close(one: Path, other: Path) -> None:
    torch.testing.assert_close(losses(one), losses(other), rtol=1e-3, atol=1e-3)
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name].double(), value.double(), rtol=3e-3, atol=3e-3, msg=name)


def states(run: Path) -> int:
    """Weights that an optimizer has met: those of a node that was never visited are none."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    (optimizer,) = state["optimizer_states"]
    return len(optimizer["state"])


@pytest.fixture
def words(small_run: list[str]) -> list[str]:
    # Adam moves a weight whose gradient is nothing but rounding as far as any other: small steps
    return [*small_run, *SMALL, "trainer.max_steps=6", "optimizer.learning_rate=3e-4"]


@pytest.mark.parametrize(
    ("batch_norm", "block_weights"),
    [("per_domain", "own"), ("shared", "tied")],
)
def test_a_search_on_two_ranks_is_that_on_one(
    words: list[str], batch_norm: str, block_weights: str
) -> None:
    """Weights, controllers, baselines, weights of domains, of as many images in all."""
    words += [f"network.batch_norm={batch_norm}", f"search.block_weights={block_weights}"]
    fitted([SEARCH, *words, "name=one"])
    fitted([SEARCH, *words, *TWO, "name=two"])
    one, two = run_of(words, "one"), run_of(words, "two")
    assert_close(one, two)
    assert weights(one)["domain_weights"].std() > 0
    assert states(one) == states(two)
    found = [Architecture.read(run / "architecture.json").paths for run in (one, two)]
    assert found[0] == found[1]


def test_a_retraining_on_two_ranks_is_that_on_one(words: list[str]) -> None:
    words = [*words, "retrain.paths=common"]
    own = [*words, *TWO, "network.batch_norm_ranks=own", "name=own"]
    runs = [[*words, "name=one"], [*words, *TWO, "name=two"], own]
    for of in runs:
        fitted([RETRAIN, *of])
    one, two = run_of(words, "one"), run_of(words, "two")
    assert_close(one, two)
    scores = [json.loads((run / "scores.json").read_text())["splits"] for run in (one, two)]
    for split in scores[0]:
        assert scores[0][split]["images"] == scores[1][split]["images"]
    # by each rank's own images it is another run
    of_two = (losses(one) - losses(two)).abs().max()
    assert (losses(one) - losses(run_of(words, "own"))).abs().max() > max(1e-3, 10 * of_two)


@pytest.mark.parametrize(("recipe", "ranks"), [(SEARCH, 4), (RETRAIN, 1)])
def test_a_run_begun_on_two_ranks_goes_on_on_others(
    words: list[str], recipe: str, ranks: int
) -> None:
    """Of the same batches in all, so to the same end but for rounding."""
    words = [recipe, *words, *TWO, "retrain.paths=common", "data.batch_size=8"]
    words += ["search.held_out_batch_size=8"]
    for name, devices in {"one": (1, 1), "two": (2, ranks)}.items():
        for steps, count in zip((3, 6), devices, strict=True):
            more = [f"name={name}", f"trainer.max_steps={steps}", f"trainer.devices={count}"]
            (fit.main if count == 1 else fitted)([*words, *more])
    one, two = run_of(words[1:], "one"), run_of(words[1:], "two")
    assert_close(one, two)
    found = [Architecture.read(run / "architecture.json").paths for run in (one, two)]
    assert found[0] == found[1]


class Started(subprocess.Popen):
    """A command, and all that it starts: nothing of it outlives the `with` around it."""

    def __init__(self, module: str, words: list[str]) -> None:
        super().__init__(
            [sys.executable, "-m", module, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def __exit__(self, *error: Any) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        super().__exit__(*error)


def begun(words: list[str], run: Path) -> Started:
    """A run that has its first checkpoint and many steps left."""
    started = Started("mdl.fit", words)
    last = run / "checkpoints" / "last.ckpt"
    for _ in range(1200):
        if last.is_file() or started.poll() is not None:
            break
        time.sleep(0.1)
    if not last.is_file() or started.poll() is not None:
        with started:
            pass
        pytest.fail(f"not begun, status {started.returncode}")
    return started


def children(process: int, environment: bytes) -> list[int]:
    """Processes that it started, with these words in their environment."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(of) for of in found if environment in Path(f"/proc/{of}/environ").read_bytes()]


LONG = ["trainer.max_steps=400", "trainer.validation_interval=50"]


@pytest.mark.parametrize(
    ("number", "validated"),
    [
        (signal.SIGTERM, []),
        (signal.SIGUSR1, ["trainer.validation_interval=1"]),
        (signal.SIGINT, ["data.workers=2"]),
    ],
)
def test_a_signal_ends_a_run_after_its_step_and_the_same_command_goes_on(
    small_run: list[str], number: signal.Signals, validated: list[str]
) -> None:
    words = [*small_run, *LONG, *validated, "retrain.paths=common", "name=it"]
    run = run_of(words, "it")
    with begun([RETRAIN, *words], run) as started:
        started.send_signal(number)
        out, error = started.communicate(timeout=120)
    assert started.returncode == (INTERRUPTED if number == signal.SIGINT else STOPPED), error
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert f"stopped at step {state['global_step']} ({number.name})" in out
    assert "Traceback" not in error
    fitted([RETRAIN, *words])
    fitted([RETRAIN, *words, "name=unbroken"])
    assert_same_run(run, run_of(words, "unbroken"))


def test_what_one_rank_is_told_ends_all_after_the_same_step(small_run: list[str]) -> None:
    words = [*small_run, *LONG, *TWO, "name=it"]
    run = run_of(words, "it")
    with begun([SEARCH, *words], run) as started:
        os.kill(children(started.pid, b"LOCAL_RANK=1")[0], signal.SIGUSR1)
        out, error = started.communicate(timeout=120)
    assert started.returncode == STOPPED, error
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert f"stopped at step {step}" in out and step % 10 == 0
