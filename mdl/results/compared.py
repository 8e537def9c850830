"""A comparison as a report reads it: its rows, and the runs of each that are finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from mdl.comparison.comparison_folder import FORMAT, ComparisonFolder
from mdl.errors import UserError
from mdl.results.run import Run
from mdl.results.statistics import Spread, multi_task_delta, paired

Accuracy = dict[str, float]
"""Domain -> top-1 in [0, 1]."""


@dataclass(frozen=True)
class ComparedRow:
    """A method and its finished runs.

    runs: seed -> a run per draw. split: whose scores are compared.
    search_seconds, training_seconds: of each run whose time is known.
    """

    name: str
    label: str
    group: str | None
    split: str
    runs: Mapping[int, Sequence[Run]]
    search_seconds: Sequence[float]
    training_seconds: Sequence[float]

    @cached_property
    def accuracy(self) -> dict[int, Accuracy]:
        """Seed -> top-1 per domain, over the draws."""
        found = {}
        for seed, draws in self.runs.items():
            scored = [of.scores[self.split]["accuracy"] for of in draws if self.split in of.scores]
            if scored:
                found[seed] = {d: fmean(of[d] for of in scored) for d in scored[0]}
        return found

    @property
    def means(self) -> dict[int, float]:
        """Seed -> mean top-1 over the domains."""
        return {seed: fmean(of.values()) for seed, of in self.accuracy.items()}

    @property
    def domains(self) -> list[str]:
        return list(next(iter(self.accuracy.values()), {}))

    def of_domain(self, domain: str) -> dict[int, float]:
        """Seed -> top-1 of a domain."""
        return {seed: of[domain] for seed, of in self.accuracy.items() if domain in of}

    @property
    def worst(self) -> tuple[str, Spread] | None:
        """The domain of the lowest accuracy over the seeds."""
        spreads = {
            domain: Spread.of(list(self.of_domain(domain).values())) for domain in self.domains
        }
        if not spreads:
            return None
        return min(spreads.items(), key=lambda item: item[1].mean)

    @property
    def all_runs(self) -> list[Run]:
        return [run for draws in self.runs.values() for run in draws]

    def cost(self, of: Callable[[Run], float]) -> float:
        """The mean of something that each run costs."""
        return fmean(of(run) for run in self.all_runs)

    @property
    def parameters(self) -> float:
        return self.cost(lambda run: run.cost.parameters.total)

    @property
    def macs(self) -> float:
        """Of one image of each domain, summed."""
        return self.cost(lambda run: run.cost.macs)

    def delta(self, baseline: ComparedRow) -> Spread | None:
        """Multi-task delta against a row, paired by seed."""
        deltas = [
            multi_task_delta(accuracy, baseline.accuracy[seed])
            for seed, accuracy in self.accuracy.items()
            if seed in baseline.accuracy
        ]
        known = [delta for delta in deltas if delta is not None]
        return Spread.of(known) if known else None


@dataclass(frozen=True)
class Compared:
    """rows: those with a finished run.

    split: 'test' once all is done, and 'val' before, so that no choice that is left knows it; and
    where no run has scores of that one, the other.

    missing: sentences on what is not there yet.
    """

    folder: ComparisonFolder
    record: Mapping[str, Any]
    rows: Mapping[str, ComparedRow]
    split: str
    missing: Sequence[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: ComparisonFolder) -> Compared:
        """Raises UserError where the record is of another version, or no row has a run yet."""
        record = folder.record()
        if record.get("format") != FORMAT:
            raise UserError(
                f"{folder.record_file} has format {record.get('format')}; this version of mdl "
                f"reads format {FORMAT}. Run the comparison with this version: mdl.compare."
            )
        runs = {
            name: Run.read(folder.run(name).path, record["rows"][job["entry"]]["label"])
            for name, job in record["jobs"].items()
            if job["finished"] and job["entry"] in record["rows"] and _is_chosen(record, job)
        }
        if not runs:
            raise UserError(
                f"{folder.path} has no finished run of a row yet. {_failed(folder, record)}Go on "
                f"with it: {record['command']}"
            )
        split = _split(record, runs)
        rows = {name: _row(record, name, runs, split) for name in record["rows"]}
        there = {name: row for name, row in rows.items() if row.runs}
        return cls(folder, record, there, split, _missing(folder, record, there))

    def row(self, role: str) -> ComparedRow | None:
        """The row that is the comparison's 'baseline', 'reference' or 'main', where it is there."""
        return self.rows.get(self.record[role])

    @property
    def domains(self) -> list[str]:
        """Of all rows, each once."""
        names = [domain for row in self.rows.values() for domain in row.domains]
        return list(dict.fromkeys(names))

    def difference(self, row: ComparedRow) -> Spread | None:
        """The main row's mean top-1 minus a row's, over the domains of both, paired by seed."""
        main = self.row("main")
        if main is None or main.name == row.name:
            return None
        ours, theirs = main.accuracy, row.accuracy
        both = {
            seed: [domain for domain in ours[seed] if domain in theirs[seed]]
            for seed in ours
            if seed in theirs
        }
        return paired(
            {
                seed: fmean(ours[seed][of] for of in common)
                for seed, common in both.items()
                if common
            },
            {
                seed: fmean(theirs[seed][of] for of in common)
                for seed, common in both.items()
                if common
            },
        )


def _split(record: Mapping[str, Any], runs: Mapping[str, Run]) -> str:
    whole = not _left(record)
    wanted, other = ("test", "val") if whole else ("val", "test")
    return wanted if any(wanted in run.scores for run in runs.values()) else other


def _is_chosen(record: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether a job is of its row's chosen try, on a seed of the comparison.

    A try that is not yet compared is none: reports show no test score that could choose.
    """
    return (
        job["attempt"] == record["rows"][job["entry"]]["winner"] and job["seed"] in record["seeds"]
    )


def _row(record: Mapping[str, Any], name: str, runs: Mapping[str, Run], split: str) -> ComparedRow:
    jobs = {job: of for job, of in record["jobs"].items() if of["entry"] == name and job in runs}
    by_seed: dict[int, list[Run]] = {}
    for job, of in jobs.items():
        by_seed.setdefault(of["seed"], []).append(runs[job])
    seconds = {phase: [_seconds(record, job, phase) for job in jobs] for phase in _PHASES}
    known = {phase: [of for of in all_of if of is not None] for phase, all_of in seconds.items()}
    of_row = record["rows"][name]
    return ComparedRow(
        name,
        of_row["label"],
        of_row["group"],
        split,
        by_seed,
        known["search"],
        known["retrain"],
    )


_PHASES = ("search", "retrain")


def _seconds(record: Mapping[str, Any], job: str, phase: str) -> float | None:
    """Of a job and all that it needs, in a phase; None where some of it is not known."""
    chain = [*record["jobs"][job]["needs"], job]
    seconds = [record["seconds"].get(of) for of in chain if record["jobs"][of]["phase"] == phase]
    return None if None in seconds else sum(seconds)


def _left(record: Mapping[str, Any]) -> list[str]:
    """Names of the jobs that are to be run."""
    return [name for name, job in record["jobs"].items() if job["left"]]


def _failed(folder: ComparisonFolder, record: Mapping[str, Any]) -> str:
    """A sentence about runs that ended in an error, and where it is; empty where none did."""
    failed = record.get("failed", {})
    if not failed:
        return ""
    logs = folder.log_file(next(iter(failed))).parent
    return f"Failed, and why is told in {logs}: {', '.join(failed)}. "


def _missing(
    folder: ComparisonFolder, record: Mapping[str, Any], rows: Mapping[str, ComparedRow]
) -> list[str]:
    left = _left(record)
    if not left:
        return []
    done = sum(job["finished"] for job in record["jobs"].values())
    sentences = [
        f"Not finished: {len(left)} of {done + len(left)} runs: {', '.join(left)}. "
        f"{_failed(folder, record)}Go on with: {record['command']}"
    ]
    absent = [of["label"] for name, of in record["rows"].items() if name not in rows]
    if absent:
        sentences.append(f"Without a finished run, and so not shown: {', '.join(absent)}.")
    return sentences
