"""The rows of a table of methods, the runs that they need, and the laws of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdl.errors import UserError, nearest

_NAMED_FOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class NeededRun:
    """A run that rows need, made once per seed: a search, or a training before theirs.

    settings: words of `mdl.fit` after those of the comparison: recipes and key=value. In all
    settings `{name}` stands for the folder of the run or row of that name, of the same seed.
    search: the run whose architecture is trained; short for
    `architecture_file={search}/architecture.json`.
    """

    phase: str
    settings: tuple[str, ...] = ()
    search: str | None = None


@dataclass(frozen=True)
class Try:
    """One of the settings of a row among which validation chooses."""

    settings: tuple[str, ...] = ()
    search: str | None = None


@dataclass(frozen=True)
class Row:
    """A method: what is trained once per seed and draw, and scored.

    like: another row, whose search, settings and chosen try this one has before its own.
    tries: compared on validation on the tuning seed; the best one is trained on all seeds.
    draws: runs per seed, each by a seed of its own, averaged within the seed.
    group: rows of one group are joined by a line where accuracy is drawn against parameters.
    """

    label: str
    search: str | None = None
    like: str | None = None
    settings: tuple[str, ...] = ()
    tries: tuple[Try, ...] = (Try(),)
    draws: int = 1
    group: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What a comparison file says.

    settings: words for every run; search_settings, retrain_settings: for those of a phase;
    overrides: for every run again, over those of its phase. A row's own come last.
    baseline: the row that changes are taken against; reference: the row whose parameters are
    1.0x; main: the row that the paired differences are of.
    bars: rows per figure of bars.
    """

    name: str
    rows: dict[str, Row]
    runs: dict[str, NeededRun] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    tuning_seed: int = 0
    runs_dir: str = "runs"
    workers: int = 1
    threads: int = 1
    search: str = "recipes/mpnas_search.yaml"
    retrain: str = "recipes/mpnas_retrain.yaml"
    settings: tuple[str, ...] = ()
    search_settings: tuple[str, ...] = ()
    retrain_settings: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    baseline: str | None = None
    reference: str | None = None
    main: str | None = None
    bars: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_names()
        self._check_settings()
        for name in self.entries:
            self._check_needs(name, ())

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def entries(self) -> list[str]:
        """Names of the runs, then of the rows."""
        return [*self.runs, *self.rows]

    def tuned(self, row: str) -> bool:
        """Whether validation has to choose between tries of the row."""
        return len(self.rows[row].tries) > 1

    def _check_numbers(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(
                f"The comparison's name is '{self.name}'; expected letters, digits, '_', '.' and "
                "'-': it names a folder."
            )
        if not self.rows:
            raise UserError("The comparison has no rows; expected at least one under 'rows'.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds is {list(self.seeds)}; expected different numbers from 0 up.")
        if self.tuning_seed < 0:
            raise UserError(f"tuning_seed is {self.tuning_seed}; expected a number from 0 up.")
        for key in ("workers", "threads"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} is {getattr(self, key)}; expected 1 or more.")
        for name, row in self.rows.items():
            if row.draws < 1 or not row.tries:
                raise UserError(f"Row '{name}' has no runs; expected 1 or more draws and tries.")
        for name, run in self.runs.items():
            if run.phase not in ("search", "retrain"):
                raise UserError(
                    f"runs.{name}.phase is '{run.phase}'; expected 'search' or 'retrain'."
                )

    def _check_settings(self) -> None:
        """Raises UserError where a setting is one that the comparison gives to each run."""
        settings = [*self.settings, *self.search_settings, *self.retrain_settings, *self.overrides]
        for run in self.runs.values():
            settings += run.settings
        for row in self.rows.values():
            settings += row.settings
            settings += [word for one in row.tries for word in one.settings]
        for word in settings:
            if word.partition("=")[0] in ("name", "runs_dir", "seed"):
                raise UserError(
                    f"A setting is {word}, which the comparison itself gives to each of its runs. "
                    "Take it away; seeds and draws say what runs are repeated with."
                )

    def _check_names(self) -> None:
        for name in self.entries:
            if not re.fullmatch(r"\w+", name):
                raise UserError(
                    f"'{name}' names a run or row; expected letters, digits and '_' only: "
                    "settings name its folder."
                )
        labels = [row.label for row in self.rows.values()]
        if same := next((label for label in labels if labels.count(label) > 1), None):
            raise UserError(f"Two rows have the label '{same}'; expected one for each.")
        if twice := next((name for name in self.runs if name in self.rows), None):
            raise UserError(
                f"'{twice}' names a run and a row; settings could not tell their folders apart. "
                f"Call the run {twice}_search."
            )
        for key in ("baseline", "reference", "main"):
            self._check_row(getattr(self, key), key)
        for name, row in self.rows.items():
            self._check_row(row.like, f"rows.{name}.like")
        for rows in self.bars:
            for row_name in rows:
                self._check_row(row_name, "figures.bars")

    def _check_row(self, name: str | None, where: str) -> None:
        if name is not None and name not in self.rows:
            raise UserError(
                f"{where} names '{name}', which is no row; {nearest(name, list(self.rows))}"
            )

    def _check_needs(self, name: str, before: Sequence[str]) -> None:
        """Raises UserError where an entry needs an unknown one, or itself in the end."""
        if name in before:
            circle = [*before[before.index(name) :], name]
            raise UserError(f"The runs need each other in a circle: {' -> '.join(circle)}.")
        for need in self._needs(name):
            if need not in self.entries:
                raise UserError(
                    f"'{name}' needs '{need}', which is neither a run nor a row; "
                    f"{nearest(need, self.entries)}"
                )
            if need in self.rows and need != self._like(name) and self.rows[need].draws > 1:
                raise UserError(
                    f"'{name}' needs the run of row '{need}', which has {self.rows[need].draws} "
                    "per seed; expected a row with one draw."
                )
            self._check_needs(need, [*before, name])

    def _like(self, name: str) -> str | None:
        return self.rows[name].like if name in self.rows else None

    def _needs(self, name: str) -> list[str]:
        """Names of the entries that an entry needs, whichever of its tries is chosen."""
        if name in self.runs:
            run = self.runs[name]
            return folders_named(run.settings, run.search)
        row = self.rows[name]
        needs = [] if row.like is None else [row.like]
        needs += folders_named(row.settings, row.search)
        for one in row.tries:
            needs += folders_named(one.settings, one.search)
        return list(dict.fromkeys(needs))


def folders_named(settings: Sequence[str], search: str | None) -> list[str]:
    """Names of the runs and rows whose folders settings name."""
    named = [] if search is None else [search]
    return named + [name for word in settings for name in _NAMED_FOLDER.findall(word)]


def with_folders(word: str, folders: dict[str, str]) -> str:
    """A setting with the folders that it names."""
    return _NAMED_FOLDER.sub(lambda found: folders[found[1]], word)
