"""What is read of a launcher's environment; a real SLURM: tests/cluster."""

import os
from pathlib import Path

import pytest

from mdl.cluster import check_launch, queue_again
from mdl.errors import UserError

BY_SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name == "WORLD_SIZE":
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (BY_SRUN, "SLURM started 4 tasks .* make 2 processes. Set trainer.devices"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, "was not started by srun"),
        ({"WORLD_SIZE": "8"}, "started 8 processes .* make 2. Set trainer.devices"),
        (
            BY_SRUN | {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8"},
            "started 8 processes .* make 2. Set trainer.devices",
        ),
    ],
)
def test_a_launch_of_another_number_of_processes_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launch(2)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BY_SRUN | {"SLURM_NTASKS": "2"},
        BY_SRUN | {"SLURM_JOB_NAME": "interactive"},
        BY_SRUN | {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
    ],
)
def test_a_launch_that_fits_passes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_launch(2)


def test_a_job_is_queued_again_by_its_own_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert queue_again() is None
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {asked}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert queue_again() == "SLURM starts job 7 again"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    queue_again()
    assert asked.read_text().split("\n")[:2] == ["requeue 7", "requeue 5_3"]
