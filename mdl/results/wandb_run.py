"""Weights & Biases: online for who is logged in, offline for who is not, never a prompt.

One law: the row of a step is what `metrics.jsonl` holds of that step, and W&B's own count of rows
is the step. W&B says which step its run ends with when it is opened; what the file holds beyond it
is sent, and nothing else. A resumed run, an outage and a rebuilding are all the same to it.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# before wandb is imported, which else greets on the error stream
os.environ.setdefault("WANDB_SILENT", "true")
# seconds: W&B's own would hold up a run by a minute and a half, and at its end for ever
os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
os.environ.setdefault("WANDB_FINISH_TIMEOUT", "60")

import wandb
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mdl.results.figures import similarity_figure
from mdl.results.metrics import MetricRows
from mdl.results.path_map import path_map_figure
from mdl.space.architecture import Architecture
from mdl.whole_files import write_text

STEP = "trainer/global_step"  # Lightning's name for the axis of all charts
_NEVER = 10**6  # attempts: W&B's own number lets go of a run after some two hours without service
_log = logging.getLogger(__name__)


def choose_mode(mode: str) -> str:
    """online | offline | disabled, of those and auto.

    auto follows WANDB_MODE, and is else online where credentials are known.
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or _mode_by_login()
    return "offline" if mode == "dryrun" else mode  # Lightning's name for it


class WandbRun(WandbLogger):
    """The W&B run of a run folder, one for its whole life: the id is stored there.

    Follows the metrics file, which another logger writes before this one is called. Where the
    service fails, training goes on and one warning says how to send later what is missing.

    mode: online | offline.
    strict: raises what W&B raises, for who asks for nothing but sending.
    """

    def __init__(
        self, run_dir: Path, metrics_file: Path, name: str, project: str, mode: str, strict: bool
    ) -> None:
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        super().__init__(
            name=name,
            project=project,
            id=_stored_id(run_dir) if first else None,  # others log nothing
            save_dir=run_dir,
            resume="allow",
            mode=mode,
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                reinit="create_new",  # each folder its own, also after one that failed
                finish_timeout_raises=True,
                x_file_stream_retry_max=_NEVER,
            ),
        )
        # Lightning passes it on although W&B dropped it, and W&B then warns of it
        self._wandb_init.pop("anonymous", None)
        self._run_dir, self._strict = run_dir, strict
        self._rows = MetricRows(metrics_file)
        self._given_up = False
        self._held = 0  # last step that W&B's run held when it was opened
        self.sent = 0  # steps sent since then

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None and not self._given_up:
            try:
                self._held = self._open_somehow().starting_step - 1
            except Exception as error:  # of many kinds, not all of them W&B's own
                self._give_up(error)
        return _DummyExperiment() if self._experiment is None else self._open()

    def _open_somehow(self) -> Any:
        """Opens W&B's run; offline where the service cannot be reached."""
        try:
            return self._open()
        except Exception as error:
            if _is_deleted(error):
                self._wandb_init["id"] = self._id = _new_id(self._run_dir)
            elif self._strict:
                raise
            else:
                self._warn("could not be reached", error)
                self._wandb_init["mode"] = "offline"
            wandb.teardown()  # whose service still holds the id
            return self._open()

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Sends the steps before: a step is sent when all of its records are in the file."""
        self._send(before=step)

    @rank_zero_only
    def close(self, whole: bool, architecture: Path | None = None) -> None:
        """Ends W&B's part of the run.

        whole: whether the last step has all of its records. If not it is sent another time.
        architecture: the file of what was found, whose pictures go with the last step.
        """
        if whole:
            self._send(before=None, architecture=architecture)
        elif self._experiment is not None:
            self._send(before=0)
        if self._experiment is None or self._given_up:
            return
        try:
            self._experiment.finish(exit_code=0 if whole else 1)
        except Exception as error:
            self._give_up(error)
        self._experiment = None

    def _open(self) -> Any:
        return super().experiment

    def _send(self, before: int | None, architecture: Path | None = None) -> None:
        if self._given_up:
            return
        try:
            run = self.experiment
            rows = [row for row in self._rows.read(before) if row[0] > self._held]
            for number, (step, row) in enumerate(rows, 1):
                if architecture is not None and number == len(rows):
                    row |= _pictures(Architecture.read(architecture))
                run.log(row | {STEP: step}, step=step, commit=True)
                self.sent += 1
        except Exception as error:  # of W&B, its process or the disk: nothing a training ends for
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._given_up = True
        if self._strict:
            raise error
        self._warn("did not take all records", error)

    def _warn(self, what: str, error: Exception) -> None:
        _log.warning(
            "W&B %s (%s); the run goes on and metrics.jsonl holds everything. Send it later: "
            "python -m mdl.report %s --wandb",
            what,
            first_line(error),
            self._run_dir,
        )


def close_wandb(loggers: Iterable[Logger], whole: bool, architecture: Path | None = None) -> None:
    """Sends what W&B still lacks and closes its run; see `WandbRun.close`."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.close(whole, architecture)


def _pictures(architecture: Architecture) -> dict[str, Any]:
    """The similarity matrix and the map of the paths."""
    paths = architecture.paths
    figures = {
        "architecture/similarity": similarity_figure(paths),
        "architecture/path_map": path_map_figure(architecture.space, paths),
    }
    return {key: wandb.Image(of) for key, of in figures.items()}


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _mode_by_login() -> str:
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _is_deleted(error: Exception) -> bool:
    """Whether somebody deleted the run in W&B, which never takes its id again."""
    return "previously created and deleted" in str(error)


def _stored_id(run_dir: Path) -> str:
    file = run_dir / "wandb_id"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else _new_id(run_dir)


def _new_id(run_dir: Path) -> str:
    made = uuid.uuid4().hex[:12]
    write_text(run_dir / "wandb_id", made)
    return made
