"""A training as a child process, on real files."""

import os
import time
from pathlib import Path

import pytest
import torch

from mdl.comparison.training import Training, stop
from mdl.run_folder import RunFolder
from tests.conftest import small_words


@pytest.fixture
def words(packed: Path, tmp_path: Path) -> list[str]:
    """A retraining that does not end, and saves nothing unless it is told to."""
    return [
        "recipes/mpnas_retrain.yaml",
        *small_words(packed, tmp_path),
        "retrain.paths=common",
        "trainer.max_steps=1000000",
        "trainer.validation_interval=1000000",
        "trainer.checkpoint_interval=1000000",
        "name=endless",
    ]


def test_a_training_that_is_stopped_has_saved_all_of_its_steps(
    words: list[str], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "endless")
    with (tmp_path / "lock").open("w") as lock:
        training = Training(words, tmp_path / "log", 1, lock.fileno())
        while training.status is None and folder.recorded_step() < 4:
            time.sleep(0.05)
        stop([training])
    said = training.last_lines()
    assert training.status == os.EX_TEMPFAIL, said
    saved = torch.load(folder.checkpoints_dir / "last.ckpt", weights_only=True)["global_step"]
    assert saved >= folder.recorded_step() >= 4
    assert any(f"stopped at step {saved}" in line for line in said)
