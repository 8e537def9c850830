"""Checkpoints: written beside and renamed, at the ends of steps; the last two and the best."""

from __future__ import annotations

import errno
import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from mdl.errors import UserError
from mdl.training.base import MultiDomainModule
from mdl.whole_files import discard, disk_faults_told

LAST, BEST = "last.ckpt", "best.ckpt"
PREVIOUS = "previous.ckpt"  # what was the last one before it
DAMAGED = "last.damaged.ckpt"  # what was the last one until it could not be read


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint is either whole or not there, whenever the process or the machine ends.

    Lightning's own writes to a temporary folder, maybe on another disk, and moves from there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Raises UserError where the disk is full, fails, or may not be written."""
        final = Path(path)
        beside = final.with_name(f".{final.name}.partial")
        with disk_faults_told(final, lambda: _bytes_of(checkpoint)):
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                with beside.open("wb") as stream:
                    torch.save(checkpoint, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                if final.name == LAST and final.is_file():
                    _keep(final, final.with_name(PREVIOUS))
                os.replace(beside, final)
                _sync(final.parent)
            except BaseException:
                discard(beside)
                raise

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        # whatever the caller asks for: a checkpoint can run no code
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content


def _keep(last: Path, previous: Path) -> None:
    """The present last checkpoint becomes the previous one, and is still the last one as well.

    At every moment both names, where they are there, are of whole checkpoints: each is renamed
    onto in one go, and what gets a name has been on the disk before.
    """
    beside = previous.with_name(f".{previous.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(last, beside)
    except OSError:
        os.replace(last, previous)  # no hard links here: for a moment there is no last one
        return
    os.replace(beside, previous)
    beside.unlink(missing_ok=True)  # renaming leaves it where both were one file already


def _sync(folder: Path) -> None:
    """What was renamed stays so, even where the machine loses its power now."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network disks know it of files alone
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class _Counted(io.RawIOBase):
    """A stream that only counts what is written."""

    count = 0

    def write(self, part: Any) -> int:
        self.count += len(part)
        return len(part)


def _bytes_of(checkpoint: dict[str, Any]) -> int:
    stream = _Counted()
    torch.save(checkpoint, stream)  # type: ignore[arg-type]
    return stream.count


def read_whole(file: Path) -> dict[str, Any]:
    """A checkpoint, on the CPU, with every byte of its contents held against its checksum.

    torch itself does not look at the checksums that it writes. Raises whatever zipfile and torch
    raise where the file is damaged.
    """
    with zipfile.ZipFile(file) as parts:
        if (part := parts.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {part} in it is another")
    content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return content


def check_readable(states: Mapping[str, Any]) -> None:
    """Raises UserError for what callbacks save, by its name, that could be written and not read."""
    for name, state in states.items():
        stream = io.BytesIO()
        try:
            torch.save(state, stream)
            stream.seek(0)
            torch.load(stream, map_location="cpu", weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise UserError(
                f"{name}, which a callback gives, cannot be saved: a checkpoint holds tensors, "
                "numbers, texts, and lists and dicts of these, and runs no code when it is read. "
                f"Mend the callback's state_dict() or on_save_checkpoint(): {_first_line(error)}"
            ) from error


def _state_of(callback: str) -> str:
    return f"The state of {callback}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class Checkpoints(Checkpoint):
    """Saves `last.ckpt` every `interval` steps and at the end, and `best.ckpt` by validation.

    The last checkpoint before it stays as `previous.ckpt`.

    monitor: the record by which the best is told, greater is better; None: no best.
    identity: what tells this run from others; a checkpoint holds it.
    data: domain -> fingerprint of its classes and images; a checkpoint holds it too.

    A step that ends in a validation is saved after it, so that a resumed run does not miss it.
    """

    def __init__(
        self,
        folder: Path,
        interval: int,
        validation_interval: int | None,
        monitor: str | None,
        identity: str,
        data: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.folder, self.interval = folder, interval
        self.validation_interval = validation_interval
        self.monitor, self.identity = monitor, identity
        self.data = {domain: dict(of) for domain, of in data.items()}
        self.best_score = float("-inf")
        self.best_step = -1
        self._last_step = -1  # of the last checkpoint that this process wrote
        self._stopped_early = False  # by a callback, such as Lightning's EarlyStopping

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        check_readable({_state_of(of.state_key): of.state_dict() for of in callbacks})
        if self._stopped_early:  # and ended before it was done with the rest
            trainer.should_stop = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        if step % self.interval == 0 and not self.is_validated(step):
            self._save(trainer, pl_module, LAST)

    def is_validated(self, step: int) -> bool:
        """Whether a validation follows the step; it is saved then."""
        return bool(self.validation_interval) and step % (self.validation_interval or 1) == 0

    def save_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves as after any step that is not validated."""
        self._save(trainer, pl_module, LAST)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or self.monitor is None:
            return
        assert isinstance(pl_module, MultiDomainModule)
        if pl_module.records[self.monitor] > self.best_score:
            self.best_score = pl_module.records[self.monitor]
            self.best_step = trainer.global_step
            self._save(trainer, pl_module, BEST)
        self._save(trainer, pl_module, LAST)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._last_step:  # else the previous one would be the same
            self._save(trainer, pl_module, LAST)

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        assert isinstance(pl_module, MultiDomainModule)
        pl_module.check_finite()
        pl_module.check_ranks()
        trainer.save_checkpoint(self.folder / name)
        if name == LAST:
            self._last_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        check_readable({_state_of(key): of for key, of in checkpoint["callbacks"].items()})
        known = ("callbacks", "state_dict", "optimizer_states")
        check_readable({f"checkpoint['{k}']": v for k, v in checkpoint.items() if k not in known})
        checkpoint["run"], checkpoint["data"] = self.identity, self.data
        checkpoint["stopped_early"] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._stopped_early = checkpoint.get("stopped_early", False)  # earlier versions lack it

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
