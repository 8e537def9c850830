"""One step of search and of retraining at the full scale of the Visual Domain Decathlon.

    python -m benchmarks.decathlon_scale [batch size]

Random images of the right sizes, the real numbers of classes; prints parameters, multiply-adds,
peak memory and time, as docs/results/decathlon-scale.md shows them.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mdl.data.decathlon import DOMAINS
from mdl.data.packing import pack_domain
from mdl.data.source import DomainSource

OVERLAY = "recipes/decathlon.yaml"


class RandomImage:
    """A noisy photo of 72 x 72 px; the pedestrians' is 72 wide and 144 high."""

    def __init__(self, label: int, height: int) -> None:
        self.label, self.height, self.name = label, height, "random"
        self.id, self.version = -1, ""

    def load(self) -> bytes:
        pixels = np.random.default_rng(self.label).integers(0, 256, (self.height, 72, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()


def pack_random(root: Path) -> None:
    for domain in DOMAINS:
        height = 144 if domain.name == "daimlerpedcls" else 72
        count = min(domain.classes, 64) + 4
        images = {
            s: [RandomImage(i % domain.classes, height) for i in range(count)] for s in SPLITS
        }
        names = [f"class{i}" for i in range(domain.classes)]
        pack_domain(DomainSource(domain.name, names, images, flip=False), root, size=72)


SPLITS = ("train", "val", "test")


def run(phase: str, root: Path, batch_size: int) -> dict[str, float]:
    """Fits for one step in a process of its own; seconds and peak memory of it."""
    command = [sys.executable, "-m", "mdl.fit", f"recipes/mpnas_{phase}.yaml", OVERLAY]
    command += [f"data.root={root}", f"runs_dir={root / 'runs'}", "trainer.max_steps=1"]
    command += [f"architecture_file={root / 'runs' / 'mpnas_search' / 'architecture.json'}"]
    command += [f"data.batch_size={batch_size}", "data.workers=0", "wandb.mode=disabled"]
    command += [f"search.held_out_batch_size={batch_size}", "search.warmup_fraction=0"]
    # 32 bits: without its own instructions for bfloat16 a CPU takes minutes for a step
    command += ["trainer.accelerator=cpu", "trainer.precision=32-true"]
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{phase} failed")
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "peak memory, GiB": round(usage.ru_maxrss / 2**20, 2)}


def main(batch_size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pack_random(root)
        found = {phase: run(phase, root, batch_size) for phase in ("search", "retrain")}
    print(json.dumps({"batch size": batch_size} | found, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
