"""What is measured with XNNPACK's weights cache is the same model."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mdl import export
from mdl.device.executorch_model import ExecutorchModel

pytestmark = pytest.mark.skipif(
    find_spec("executorch") is None or shutil.which("g++") is None,
    reason="needs the optional packages of '.[device]', and g++",
)


def test_methods_answer_the_same_with_and_without_the_weights_cache(
    finished_run: Path, tmp_path: Path
) -> None:
    export.main([str(finished_run), "--to", "executorch", "--images", "2", "--out", str(tmp_path)])
    file = tmp_path / "model.pte"
    model = ExecutorchModel(file)
    expected = 0.0
    for domain in model.domains:
        side = model.metadata(domain).domain(domain).image_size
        expected += model.logits(domain, np.zeros((1, 3, side, side), np.float32))[0, 0]
    for cache in ([], ["--weights-cache"]):
        command = [sys.executable, "-m", "benchmarks.loaded", str(file), *cache]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["logits"] == pytest.approx(expected, abs=1e-5)
