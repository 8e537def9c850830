"""What safety costs: the part of a run's time in which it writes checkpoints.

    python -m benchmarks.safety [RECIPE ...] [key=value ...]

The run is what `python -m mdl.fit` makes of the same words, in a temporary folder. Times are of the
wall: a checkpoint waits for the disk.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from mdl import fit
from mdl.recipe_files import load_recipe
from mdl.run_folder import RunFolder
from mdl.trainer import quiet
from mdl.training.checkpoints import LAST, Checkpoints


def main(words: Sequence[str]) -> None:
    quiet()
    seconds: list[float] = []
    save = Checkpoints._save

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        save(*arguments)
        seconds.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as runs, mock.patch.object(Checkpoints, "_save", timed):
        recipe = load_recipe([*words, f"runs_dir={runs}", "wandb.mode=disabled"])
        started = time.perf_counter()
        folder = fit.fit(recipe, RunFolder.of(recipe)).folder
        whole = time.perf_counter() - started
        size = (folder.checkpoints_dir / LAST).stat().st_size
    print(
        f"{recipe.phase}, {recipe.trainer.max_steps} steps in {whole:.0f} s: {len(seconds)} "
        f"checkpoints of {size / 2**20:.1f} MiB in {sum(seconds):.2f} s, {sum(seconds) / whole:.1%}"
    )


if __name__ == "__main__":
    main(sys.argv[1:] or ["recipes/mpnas_search.yaml"])
