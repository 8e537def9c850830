"""Searches and retrainings over two nodes of a real SLURM, by the project's job files."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local_slurm import LocalSlurm, missing
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, damage, run_of

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

SBATCH = ["--ntasks-per-node=1", "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1"]
STEPS = [
    "trainer.max_steps=200",
    "trainer.validation_interval=100",
    "trainer.checkpoint_interval=10",
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSlurm]:
    with LocalSlurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def words(small_run: list[str]) -> list[str]:
    return [*small_run, *STEPS, "retrain.paths=common"]


def submitted(slurm: LocalSlurm, words: list[str]) -> tuple[str, Path]:
    """A job of the phase's own file; its number and log."""
    log = slurm.folder / f"log-{time.monotonic_ns()}"
    file = "slurm/search.sbatch" if words[0] == SEARCH else "slurm/retrain.sbatch"
    environment = f"--export=ALL,PYTHON={sys.executable},OMP_NUM_THREADS=1"
    return slurm.submit(*SBATCH, f"--output={log}", environment, file, *words), log


def begun(run: Path, log: Path) -> None:
    """Waits for a first checkpoint."""
    for _ in range(600):
        if (run / "checkpoints" / "last.ckpt").is_file():
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text() if log.is_file() else "no log")


def of_rank_1(run: Path) -> int:
    """A rank's process of the run, by its environment and command."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = b"mdl.fit" in command and str(run.parent).encode() in command
        if ours and b"SLURM_PROCID=1" in environment and b"srun" not in command.split(b"\0")[0]:
            return int(folder.name)
    raise AssertionError("no process of rank 1")


BREAKS = {
    "requeued by a person": lambda slurm, job, run: slurm.run("scontrol", "requeue", job),
    "told that its time is over": lambda slurm, job, run: slurm.run(
        "scancel", "--signal=USR1", job
    ),
    "a rank killed": lambda slurm, job, run: os.kill(of_rank_1(run), signal.SIGKILL),
}


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        (SEARCH, "requeued by a person"),
        (RETRAIN, "told that its time is over"),
        (SEARCH, "a rank killed"),
    ],
)
def test_a_broken_job_ends_as_one_that_was_never_broken(
    slurm: LocalSlurm, words: list[str], recipe: str, how: str
) -> None:
    job, log = submitted(slurm, [recipe, *words, "name=broken"])
    run = run_of(words, "broken")
    begun(run, log)
    BREAKS[how](slurm, job, run)
    assert slurm.wait(job) == "COMPLETED", log.read_text()
    assert "goes on at step" in log.read_text()
    job, log = submitted(slurm, [recipe, *words, "name=unbroken"])
    assert slurm.wait(job) == "COMPLETED", log.read_text()
    assert_same_run(run, run_of(words, "unbroken"))


def test_what_a_person_has_to_mend_is_not_queued_again(
    slurm: LocalSlurm, words: list[str], packed: Path, tmp_path: Path
) -> None:
    """A broken image, which one rank meets: the other ends with its status."""
    own = Path(shutil.copytree(packed, tmp_path / "own"))
    damage(own, "cars", 1)
    job, log = submitted(slurm, [SEARCH, *words, f"data.root={own}", "data.broken_images_limit=0"])
    assert slurm.wait(job) == "FAILED"
    assert log.read_text().count("error: Domain 'cars' holds more broken images") == 1
    assert "queued again" not in log.read_text()


def test_another_number_of_tasks_than_devices_is_refused_in_words(
    slurm: LocalSlurm, words: list[str]
) -> None:
    log = slurm.folder / "mismatch"
    wrong = f"{sys.executable} -m mdl.fit {SEARCH} {' '.join(words[:1])} trainer.devices=1"
    job = slurm.submit(*SBATCH, f"--output={log}", f"--wrap=srun {wrong} trainer.num_nodes=1")
    assert slurm.wait(job) == "FAILED"
    assert "SLURM started 2 tasks" in log.read_text()
    job = slurm.submit(*SBATCH, f"--output={log}", f"--wrap={wrong} trainer.num_nodes=2")
    assert slurm.wait(job) == "FAILED"
    assert "not started by srun" in log.read_text()
