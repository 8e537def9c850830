"""`runs/<name>/`: where a run keeps all that it makes, and finds it again.

The name comes from the recipe, not from the clock: the same command goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mdl.errors import ProcessLost, UserError
from mdl.file_locks import try_lock
from mdl.recipe import Recipe
from mdl.recipe_files import dump_recipe, flat, load_recipe
from mdl.space.architecture import Architecture
from mdl.whole_files import disk_faults_told, is_beside, write_text

RECIPE = "recipe.yaml"
_LOCK = ".lock"
# may differ between two starts of one run: where and how fast, not what
_FREE = {
    "runs_dir",
    "wandb",
    "data.workers",
    "data.cache_dir",
    "data.decoded_dir",
    "data.evaluation_batch_size",
    "data.broken_images_limit",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.threads",
    "trainer.timeout",
    "trainer.cuda_graph",
}
# of the other phase: has no part in a run of this one
_NO_PART = {
    "search": (
        "retrain.paths",
        "retrain.draw",
        "retrain.common_file",
        "retrain.backbone_file",
        "retrain.backbone",
    ),
    "retrain": ("search",),
}

State = Mapping[str, tuple[int, int, int]]

_LAST_RECORDS = 2**17  # bytes, of the end of the metrics file, that hold whole records


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        return self.path / RECIPE

    @property
    def architecture_file(self) -> Path:
        return self.path / "architecture.json"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def scores_file(self) -> Path:
        return self.path / "scores.json"

    @property
    def finalists_dir(self) -> Path:
        return self.path / "finalists"

    def finalists(self) -> list[Architecture]:
        """Those that the run began with, by their numbers; none where it has not begun."""
        files = sorted(self.finalists_dir.glob("*.json"), key=lambda file: int(file.stem))
        return [Architecture.read(file) for file in files]

    def write_finalists(self, finalists: Sequence[Architecture]) -> None:
        """An architecture file each: 00.json, 01.json, ..."""
        for file in self.finalists_dir.glob("*.json"):
            file.unlink()  # of a start that came to nothing
        self.finalists_dir.mkdir(exist_ok=True)
        for number, of in enumerate(finalists):
            of.write(self.finalists_dir / f"{number:02d}.json")

    @property
    def figures_dir(self) -> Path:
        return self.path / "figures"

    @property
    def has_begun(self) -> bool:
        """Whether there is something to lose: a checkpoint, a record, or what the run was for.

        Checkpoints alone do not tell: they may be removed from a finished run.
        """
        recorded = self.metrics_file.is_file() and self.metrics_file.stat().st_size > 0
        # a retraining's architecture.json is only a copy
        searched = self.architecture_file.is_file() and self.recipe().phase == "search"
        saved = any(self.checkpoints_dir.glob("*.ckpt"))
        return saved or recorded or searched or self.scores_file.is_file()

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        """The folder of a recipe's run, which may not be there yet.

        Raises UserError where it belongs to another recipe that has left anything there: nothing
        is written over.
        """
        folder = cls(Path(recipe.runs_dir) / recipe.name)
        # before its recipe is looked for: another rank may be claiming it
        files = folder.path.iterdir() if folder.path.is_dir() else ()
        holds = any(not is_beside(file) and file.name != _LOCK for file in files)
        if folder.recipe_file.is_file():
            if folder.has_begun:
                folder._check_same(recipe)
        elif holds:
            raise UserError(
                f"{folder.path} holds files but no {RECIPE}: it is not the folder of a run. "
                "Choose another with name=..."
            )
        return folder

    def state(self) -> State:
        """What differs once another process has trained in the folder, or claimed it."""
        found = {}
        for file in (self.recipe_file, self.metrics_file, *self.checkpoints_dir.glob("*.ckpt")):
            with suppress(FileNotFoundError):
                of = file.stat()
                found[file.name] = (of.st_ino, of.st_size, of.st_mtime_ns)
        return found

    def claim(self, recipe: Recipe, seen: State) -> None:
        """Makes the folder this recipe's. To be called once the recipe has proved itself, and
        while the folder is held.

        seen: the folder's state before what is there was read.
        Raises UserError where another process has been there since.
        Raises UserError where it may not be written, or its disk is full: before any training.
        """
        if self.state() != seen:
            raise UserError(
                f"Another process has worked in {self.path} while this one began. The same command "
                "goes on from what it has saved."
            )
        write_text(self.recipe_file, dump_recipe(recipe))
        with disk_faults_told(self.checkpoints_dir):
            self.checkpoints_dir.mkdir(exist_ok=True)
            with TemporaryFile(dir=self.checkpoints_dir):
                pass

    @contextmanager
    def held(self, restarted: bool) -> Iterator[None]:
        """The folder, made if need be, for this process alone, where the file system has locks.

        The lock is the process's own: decoding processes that outlive it for a moment have none.
        restarted: whether nobody has typed the command; what holds the folder may then be what was
        lost, of which a file server does not know yet.
        Raises UserError where another process has it; ProcessLost for a restarted one.
        """
        with disk_faults_told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / _LOCK).open("a+", encoding="utf-8")
        with lock:
            if not try_lock(lock, fcntl.lockf):
                lock.seek(0)
                kind = ProcessLost if restarted else UserError
                raise kind(
                    f"{self.path} is being trained by {lock.read().strip() or 'another process'}. "
                    "Wait for its end or end it, or start another run with name=..."
                )
            with disk_faults_told(self.path):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}")
                lock.flush()
            yield

    @classmethod
    def find(cls, path: Path) -> RunFolder:
        """The folder of an earlier run. Raises UserError where there is none."""
        folder = cls(path)
        if not folder.recipe_file.is_file():
            raise UserError(
                f"{path} is not the folder of a run: it holds no {RECIPE}. Expected e.g. "
                "runs/mpnas_retrain, as python -m mdl.fit makes it."
            )
        return folder

    @classmethod
    def of_retraining(cls, file: Path) -> RunFolder:
        """The retraining that a checkpoint is of. Raises UserError where it is of none."""
        if not file.is_file():
            raise UserError(
                f"No checkpoint at {file}; expected one of a run, e.g. "
                "runs/mpnas_retrain/checkpoints/best.ckpt"
            )
        folder = cls.find(file.parent.parent)
        if folder.recipe().phase != "retrain":
            raise UserError(
                f"{file} is of a search, whose network has no path of its own; expected a "
                "retraining's, e.g. runs/mpnas_retrain/checkpoints/best.ckpt"
            )
        return folder

    def recipe(self) -> Recipe:
        """Raises UserError where the file is damaged, or was written by something else."""
        try:
            content = OmegaConf.load(self.recipe_file)
            merged = OmegaConf.merge(OmegaConf.structured(Recipe), content)
            recipe: Any = OmegaConf.to_object(merged)
        # TypeError: of a list; UnicodeDecodeError is a ValueError
        except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
            raise UserError(
                f"{self.recipe_file} cannot be read as a run's recipe: "
                f"{' '.join(str(error).split())}. Restore it, or start a new run with name=..."
            ) from error
        assert isinstance(recipe, Recipe)
        return recipe

    def go_on_command(self) -> str:
        """What to type to go on with this run, wherever its folder has been moved to."""
        words = [str(self.recipe_file)]
        if Path(self.recipe().runs_dir).resolve() != self.path.resolve().parent:
            words.append(f"runs_dir={self.path.parent}")
        return shlex.join(["python", "-m", "mdl.fit", *words])

    def retrain_command(self) -> str:
        """What to type to retrain what this run, a search, has found."""
        recipe = self.recipe()
        words = [f"architecture_file={self.architecture_file}", f"data.root={recipe.data.root}"]
        words += [f"runs_dir={self.path.parent}", f"name={recipe.name}_retrain"]
        return shlex.join(["python", "-m", "mdl.fit", "recipes/mpnas_retrain.yaml", *words])

    def recipe_with(self, words: Sequence[str]) -> Recipe:
        """The run's recipe with `key=value` words over it, which may not change what it is.

        Raises UserError where one would, or is none.
        """
        for word in words:
            if "=" not in word:
                raise UserError(f"'{word}' is no setting; expected key=value.")
        recipe = load_recipe([str(self.recipe_file), *words])
        if changes := self.changes(recipe):
            raise UserError(
                f"The run of {self.path} cannot be another ({changes}); expected keys that change "
                "no result, e.g. data.evaluation_batch_size, data.workers, trainer.accelerator."
            )
        return recipe

    def _check_same(self, recipe: Recipe) -> None:
        if changes := self.changes(recipe):
            raise UserError(
                f"{self.path} belongs to a run of another recipe ({changes}). "
                f"Start a new run with name={recipe.name}_2, or give the recipe back its values."
            )

    def settled(self, recipe: Recipe) -> Recipe:
        """The recipe with what the run, if it has begun, keeps of settings that do nothing in it.

        They may change, but checkpoints hold a fingerprint that counts them.
        """
        if not (self.recipe_file.is_file() and self.has_begun):
            return recipe
        settled, begun = OmegaConf.structured(recipe), OmegaConf.structured(self.recipe())
        for key in _NO_PART[recipe.phase]:
            OmegaConf.update(settled, key, OmegaConf.select(begun, key), merge=False)
        result: Any = OmegaConf.to_object(settled)
        assert isinstance(result, Recipe)
        return result

    def changes(self, recipe: Recipe) -> str:
        """How a recipe differs from the run's in what may not change, in words; '' if nowhere."""
        before, now = _flat(self.recipe()), _flat(recipe)
        counted = [key for key in sorted(before | now) if not _is_of(key, _NO_PART[recipe.phase])]
        changed = [key for key in counted if before.get(key) != now.get(key)]
        return "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)

    def is_finished(self, phase: str, max_steps: int) -> bool:
        """Whether the phase's product was made: after all steps, or after a callback's stop."""
        if phase == "retrain":
            stopped_early = self.scores().get("stopped_early", False)
        else:
            stopped_early = self._product().get("stopped_early", False)
        return stopped_early or self.finished_steps(phase) >= max_steps

    def finished_steps(self, phase: str) -> int:
        """After how many steps the phase's product was made; 0 where it is not there."""
        if phase == "retrain":
            return int(self.scores().get("step", 0))
        return int(self._product().get("step", 0))

    def _product(self) -> Mapping[str, Any]:
        """What a search's architecture says of its making; empty where it is not there."""
        if not self.architecture_file.is_file():
            return {}
        return Architecture.read(self.architecture_file).source

    def recorded_step(self) -> int:
        """The step of the last record in the metrics file; 0 where there is none."""
        if not self.metrics_file.is_file():
            return 0
        with self.metrics_file.open("rb") as file:
            file.seek(max(0, self.metrics_file.stat().st_size - _LAST_RECORDS))
            lines = file.read().splitlines()
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                continue  # half-written, or cut at its beginning
        return 0

    def scores(self) -> dict[str, Any]:
        """What `scores.json` holds; empty where it was not yet written.

        Raises UserError where the file is damaged.
        """
        if not self.scores_file.is_file():
            return {}
        remedy = "the run's own command, or mdl.evaluate, writes it again"
        return read_object(self.scores_file, "a run's scores", remedy)

    def write_scores(self, scores: dict[str, Any]) -> None:
        write_text(self.scores_file, json.dumps(scores, indent=1) + "\n")


def read_object(file: Path, what: str, once_removed: str) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UserError(
            f"{file} cannot be read as {what}: {error}. Restore it, or remove it: {once_removed}."
        ) from error
    return content


def identity(recipe: Recipe) -> str:
    """What tells a run from others: a hash of all keys that may not change within it.

    Of those that differ from their defaults, so that a key that a later version adds leaves the
    runs of earlier ones what they are.
    """
    defaults = _flat(Recipe())
    changed = {k: v for k, v in _flat(recipe).items() if k not in defaults or v != defaults[k]}
    text = json.dumps(changed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value, of all keys that may not change within a run."""
    whole = flat(OmegaConf.to_container(OmegaConf.structured(recipe)))
    return {key: value for key, value in whole.items() if not _is_of(key, _FREE)}


def _is_of(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
