"""What a whole run adds to its steps: waiting for images, and Lightning with all that hangs on it.

    python -m benchmarks.run_overhead [RECIPE ...] [key=value ...]

A retraining as the recipe says, of one common path, with its streams, callbacks, loggers and
checkpoints, without validation. Twice: once as it is, where the time within the loader's `next` is
what the step waits for images; and once with a bare step (`benchmarks/bare.py`) of an equal module
on the same batch after each of its own, which is what a step is without Lightning. The augmentation
of a batch counts as neither.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher

from benchmarks.bare import bare
from benchmarks.paired import Ratio
from mdl.architectures import choose_architecture
from mdl.assembly import build_data, build_retrain, find_domains
from mdl.data.transforms import BatchTransform
from mdl.recipe_callbacks import build_callbacks
from mdl.recipe_files import load_recipe
from mdl.run_folder import RunFolder
from mdl.trainer import build_loggers, build_trainer, quiet
from mdl.training.base import MultiDomainModule

WARMUP = 20  # steps that do not count
BLOCK = 10  # steps that are taken together: a recipe's record interval


_ALWAYS = ["wandb.mode=disabled", "trainer.validation_interval=1000000"]


class _Watch(L.Callback):
    """Seconds of each whole step, of its waiting, and of a bare step after it."""

    def __init__(self, bare_module: MultiDomainModule | None) -> None:
        self.bare_module = bare_module
        self.whole: list[float] = []
        self.waited: list[float] = []
        self.bare: list[float] = []
        self.augmented: list[float] = []
        self.waiting = self.augmenting = 0.0
        self._since: float | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, at: int
    ) -> None:
        now = time.perf_counter()
        if self._since is not None and at >= WARMUP:
            self.whole.append(now - self._since)
            self.waited.append(self.waiting)
            self.augmented.append(self.augmenting)
        self.waiting = self.augmenting = 0.0
        if self.bare_module is not None:
            started = time.perf_counter()
            self.bare_module.training_step(batch, at)
            if self._since is not None and at >= WARMUP:
                self.bare.append(time.perf_counter() - started)
        self._since = time.perf_counter()


def _timed(own: Callable[..., Any], watch: _Watch, name: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return own(*arguments, **named)
        finally:
            setattr(watch, name, getattr(watch, name) + time.perf_counter() - started)

    return timed


def watched_run(words: Sequence[str], with_bare: bool) -> _Watch:
    with tempfile.TemporaryDirectory() as runs:
        recipe = load_recipe([*words, "retrain.paths=common", *_ALWAYS, f"runs_dir={runs}"])
        domains = find_domains(recipe)
        architecture = choose_architecture(recipe, domains)
        module = build_retrain(recipe, domains, architecture)
        watch = _Watch(bare(build_retrain(recipe, domains, architecture)) if with_bare else None)
        folder = RunFolder(Path(runs) / recipe.name)
        folder.path.mkdir(parents=True)
        trainer = build_trainer(recipe, folder, domains, build_callbacks(recipe))
        # the last of all, the writing of checkpoints included
        trainer.callbacks.append(watch)
        trainer.loggers = build_loggers(recipe, folder, 0)
        wait = _timed(_PrefetchDataFetcher.__next__, watch, "waiting")
        augment = _timed(BatchTransform.__call__, watch, "augmenting")
        with (
            mock.patch.object(_PrefetchDataFetcher, "__next__", wait),
            mock.patch.object(BatchTransform, "__call__", augment),
        ):
            trainer.fit(module, build_data(recipe, domains))
    return watch


def overhead(words: Sequence[str]) -> tuple[float, Ratio]:
    """Part of a step's time that is waiting; and a step without it / a bare step, by blocks."""
    alone, beside = watched_run(words, with_bare=False), watched_run(words, with_bare=True)
    own = [
        whole - waited - augmented
        for whole, waited, augmented in zip(
            beside.whole, beside.waited, beside.augmented, strict=True
        )
    ]
    starts = range(0, len(own) - BLOCK + 1, BLOCK)
    ratios = (sum(own[at : at + BLOCK]) / sum(beside.bare[at : at + BLOCK]) for at in starts)
    return sum(alone.waited) / sum(alone.whole), Ratio(tuple(ratios))


def main(words: Sequence[str]) -> None:
    quiet()
    waits, ratio = overhead(words or ["recipes/mpnas_retrain.yaml"])
    print(f"waiting for images: {waits:.1%} of a step")
    print(f"a step with Lightning, loggers, callbacks and checkpoints / a bare step: {ratio}")


if __name__ == "__main__":
    main(sys.argv[1:])
