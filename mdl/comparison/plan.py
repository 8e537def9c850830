"""The runs of a comparison, with the words of their commands, in an order that can be followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mdl.comparison.comparison import Comparison, NeededRun, Try, folders_named, with_folders
from mdl.errors import UserError

# draws of one seed are this far apart; with draws, seeds are below it, and meet no other's draw
SEEDS_PER_DRAW = 1000


@dataclass(frozen=True)
class Job:
    """One run: a folder, and the words of `mdl.fit` that fill it.

    entry: the run or row that it is of. attempt: which of the row's tries.
    needs: names of the jobs that have to be finished first.
    undecided: rows whose tries have to be compared before it is known what this one does; its
    words are those of their first try until then.
    """

    name: str
    entry: str
    phase: str
    seed: int
    words: tuple[str, ...]
    draw: int = 0
    attempt: int = 0
    needs: tuple[str, ...] = ()
    undecided: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Content:
    """What a row trains, with all that it takes over from the row that it is like."""

    settings: tuple[str, ...]
    search: str | None
    undecided: tuple[str, ...]


def _check_seeds(comparison: Comparison) -> None:
    drawn = next((name for name, row in comparison.rows.items() if row.draws > 1), None)
    if drawn is not None and (most := max(comparison.seeds)) >= SEEDS_PER_DRAW:
        raise UserError(
            f"seeds holds {most}, and '{drawn}' has several draws, whose seeds lie "
            f"{SEEDS_PER_DRAW} apart; expected seeds below {SEEDS_PER_DRAW}."
        )


class Plan:
    """All jobs of a comparison, each after those that it needs; the tuning seed's first.

    winners: row -> its chosen try, of the rows whose tries have been compared.
    """

    def __init__(self, comparison: Comparison, winners: Mapping[str, int]) -> None:
        self.comparison, self.winners = comparison, winners
        _check_seeds(comparison)
        self.jobs: dict[str, Job] = {}
        self.runs_dir = comparison.folder / "runs"
        for row in comparison.rows:
            if comparison.tuned(row):
                for attempt in range(len(comparison.rows[row].tries)):
                    self._add_draws(row, comparison.tuning_seed, attempt)
        for seed in comparison.seeds:
            for row in comparison.rows:
                self._add_draws(row, seed, winners.get(row, 0))

    def of_row(self, row: str, seed: int, attempt: int | None = None) -> list[Job]:
        """A row's jobs of a seed, by draw; of the chosen try where no other is asked for."""
        attempt = self.winners.get(row, 0) if attempt is None else attempt
        draws = range(self.comparison.rows[row].draws)
        return [self.jobs[_job_name(row, seed, draw, attempt)] for draw in draws]

    def chain(self, job: Job) -> list[Job]:
        """The jobs that a job needs, directly or not, without itself."""
        found: dict[str, Job] = {}
        for name in job.needs:
            found |= {of.name: of for of in self.chain(self.jobs[name])}
            found[name] = self.jobs[name]
        return list(found.values())

    def _add_draws(self, row: str, seed: int, attempt: int) -> None:
        for draw in range(self.comparison.rows[row].draws):
            self._add(row, seed, draw, attempt)

    def _add(self, entry: str, seed: int, draw: int = 0, attempt: int = 0) -> Job:
        name = _job_name(entry, seed, draw, attempt)
        if name in self.jobs:
            return self.jobs[name]
        if entry in self.comparison.runs:
            run = self.comparison.runs[entry]
            content = _Content(run.settings, run.search, ())
        else:
            run = NeededRun("retrain")
            content = self._content(entry, attempt, fixed=seed == self.comparison.tuning_seed)
        named = folders_named(content.settings, content.search)
        needs = {n: self._add(n, seed, attempt=self.winners.get(n, 0)) for n in named}
        undecided = [*content.undecided, *filter(self._is_open, named)]
        undecided += [row for job in needs.values() for row in job.undecided]
        self.jobs[name] = Job(
            name,
            entry,
            run.phase,
            seed,
            self._words(name, run.phase, seed + SEEDS_PER_DRAW * draw, content, needs),
            draw,
            attempt,
            tuple(dict.fromkeys(job.name for job in needs.values())),
            tuple(dict.fromkeys(undecided)),
        )
        return self.jobs[name]

    def _is_open(self, name: str) -> bool:
        rows = self.comparison.rows
        return name in rows and self.comparison.tuned(name) and name not in self.winners

    def _content(self, row: str, attempt: int, fixed: bool) -> _Content:
        """fixed: the attempt is asked for, whether it will be chosen or not."""
        of = self.comparison.rows[row]
        base = _Content((), None, ())
        if of.like is not None:
            base = self._content(of.like, self.winners.get(of.like, 0), fixed=False)
        one: Try = of.tries[attempt]
        undecided = () if fixed or not self._is_open(row) else (row,)
        return _Content(
            (*base.settings, *of.settings, *one.settings),
            one.search or of.search or base.search,
            (*base.undecided, *undecided),
        )

    def _words(
        self, name: str, phase: str, seed: int, content: _Content, needs: Mapping[str, Job]
    ) -> tuple[str, ...]:
        of = self.comparison
        folders = {need: str(self.runs_dir / job.name) for need, job in needs.items()}
        own = [with_folders(word, folders) for word in content.settings]
        if content.search is not None:
            file = Path(folders[content.search]) / "architecture.json"
            own.insert(0, f"architecture_file={file}")
        return (
            of.search if phase == "search" else of.retrain,
            "wandb.mode=disabled",
            f"trainer.threads={of.threads}",
            *of.settings,
            *(of.search_settings if phase == "search" else of.retrain_settings),
            *of.overrides,
            *own,
            f"name={name}",
            f"runs_dir={self.runs_dir}",
            f"seed={seed}",
        )


def _job_name(entry: str, seed: int, draw: int, attempt: int) -> str:
    """With '-' between its parts, which no name of a run or row has."""
    name = entry
    if attempt:
        name += f"-try{attempt + 1}"
    if draw:
        name += f"-draw{draw + 1}"
    return f"{name}-seed{seed}"
