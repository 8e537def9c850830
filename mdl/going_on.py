"""What a run goes on from: its last checkpoint, or the one before it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.run_folder import RunFolder
from mdl.training.checkpoints import DAMAGED, LAST, PREVIOUS
from mdl.weights import DamagedCheckpoint, read_checkpoint


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint, and the last one, where that is damaged."""

    file: Path
    step: int
    damaged: DamagedCheckpoint | None

    def in_words(self, run: Path) -> str:
        if self.damaged is None:
            return f"{run} goes on at step {self.step}"
        return (
            f"{self.damaged.file} is damaged ({self.damaged.why}) and was renamed to {DAMAGED}: "
            f"{run} goes on at step {self.step}, from {self.file.name}"
        )

    def set_damaged_aside(self) -> None:
        """Renames what is damaged: the next checkpoint takes its place, not that of a whole one."""
        if self.damaged is not None:
            os.replace(self.damaged.file, self.damaged.file.with_name(DAMAGED))


def last_saved(folder: RunFolder, recipe: Recipe, domains: Mapping[str, Domain]) -> Saved | None:
    """The last checkpoint of a run that is whole; None where the run has none yet.

    Raises UserError where all that are there are damaged, or belong to another run, or other data.
    """
    damaged: list[DamagedCheckpoint] = []
    for name in (LAST, PREVIOUS):
        file = folder.checkpoints_dir / name
        if not file.is_file():
            continue
        try:
            content = read_checkpoint(file, recipe, domains, to_go_on=True)
        except DamagedCheckpoint as error:
            damaged.append(error)
        else:
            return Saved(file, content["global_step"], damaged[0] if damaged else None)
    if damaged:
        what = " and ".join(f"{of.file} ({of.why})" for of in damaged)
        raise UserError(
            f"No checkpoint to go on from: {what} cannot be read. Restore one from a copy, or "
            f"remove {folder.checkpoints_dir} to start this run from the beginning, or start a new "
            "one with name=..."
        )
    return None
