"""Runs what a comparison lacks, several trainings at a time, and keeps its record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import monotonic, sleep
from typing import IO, Any

from mdl.comparison.comparison import Comparison
from mdl.comparison.comparison_folder import FORMAT, ComparisonFolder, note_processes
from mdl.comparison.estimate import Left, Measured, duration, seconds_left
from mdl.comparison.plan import Job, Plan
from mdl.comparison.training import Training, stop
from mdl.comparison.tries import Validation, compare_tries
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.recipe_files import load_recipe

SECONDS_BETWEEN_LINES = 60
_SECONDS_BETWEEN_RECORDS = 10
_SECONDS_BETWEEN_LOOKS = 0.2
_OF_A_SEARCH = ("searched", "random", "widened")  # retrain.paths that need an architecture


class Runner:
    """A comparison at work.

    tell: takes each line that is to be shown. command: what to type to go on; kept in the record.
    allowed: packages of the user whose callbacks the rows may name.
    Raises UserError where a setting is refused, or where a run has begun with other settings.
    """

    def __init__(
        self,
        comparison: Comparison,
        tell: Callable[[str], None],
        command: str,
        allowed: Sequence[str] = (),
    ) -> None:
        self.comparison, self.tell, self.command = comparison, tell, command
        self._flags = [word for package in allowed for word in ("--allow", package)]
        self.folder = ComparisonFolder(comparison.folder)
        # of each job, over all of its starts
        self.seconds: dict[str, float] = self.folder.record().get("seconds", {})
        self.untimed: set[str] = set()  # jobs that went on while nobody looked
        self.failed: dict[str, int] = {}  # job -> exit status
        # of an earlier start, and not tried again yet
        self.failed_before: dict[str, int] = self.folder.record().get("failed", {})
        self._recipes: dict[tuple[str, ...], Recipe] = {}
        self._checked: set[tuple[str, ...]] = set()  # words of runs that have begun with them
        self._finished: set[str] = set()
        self._running: dict[str, Training] = {}
        self._first_steps: dict[str, int] = {}  # of what runs: where it began this time
        self.plan: Plan
        self.validation: Validation
        self.look()

    def look(self) -> None:
        """Takes in what lies there: finished runs, and what their tries say.

        Raises UserError where a run has begun with other settings than its row has by now.
        """
        self.plan, self.validation = compare_tries(self.comparison, self._validation_mean)
        for job in self.plan.jobs.values():
            self._check(job)

    @property
    def unfinished(self) -> list[Job]:
        """What is left: rows' trainings, and of the other runs those that something left needs.

        A super-network of which all searches are finished is not made again where its folder is
        gone: a comparison goes on from what matters of it.
        """
        left: dict[str, Job] = {}
        for job in reversed(self.plan.jobs.values()):  # each before what it needs
            needed = any(job.name in later.needs for later in left.values())
            if (needed or job.entry in self.comparison.rows) and not self.is_finished(job):
                left[job.name] = job
        return list(reversed(left.values()))

    def run(self) -> None:
        """Runs until nothing is left that can be run."""
        with self.folder.claimed() as lock:
            try:
                # another process may have worked on it until now
                before = self.folder.record()
                self.seconds = before.get("seconds", {})
                self.failed_before = before.get("failed", {})
                # what ran when the record was last written was left by a runner that was killed
                self.untimed = {*before.get("untimed", ()), *before.get("running", ())}
                self.look()
                self._write_record()
                self.tell(self.state())
                self._work(lock)
            finally:
                running = list(self._running.values())
                stop(running)
                for name in list(self._running):
                    self._take_seconds(name)
                self._write_record()

    def is_finished(self, job: Job) -> bool:
        if job.name not in self._finished:
            done = self.folder.run(job.name).is_finished(job.phase, self._steps(job))
            if job.undecided or not done:
                return False
            self._finished.add(job.name)
        return True

    def steps_left(self, job: Job) -> int:
        return max(0, self._steps(job) - self.folder.run(job.name).recorded_step())

    def state(self) -> str:
        """What is done and what remains, in a line."""
        left = self.unfinished
        done = sum(map(self.is_finished, self.plan.jobs.values()))
        line = f"{done} of {done + len(left)} runs done"
        if failed := [job.name for job in left if self.failure(job.name) is not None]:
            line += f"; failed: {', '.join(failed)}"
        if running := [f"{n} ({self._progress(n)})" for n in self._running]:
            line += f"; running: {', '.join(running)}"
        if not left:
            return line
        time = seconds_left(
            [Left(job, self.steps_left(job)) for job in left],
            self._measured(),
            self.comparison.workers,
        )
        if time is None:
            return f"{line}; time left: not known until a search and a training have run a while"
        return f"{line}; about {duration(time)} left"

    def failure(self, name: str) -> int | None:
        """The exit status of a job that has failed when it was last tried."""
        return self.failed.get(name, self.failed_before.get(name))

    def blocked(self) -> list[Job]:
        """What was not run, because something that it needs has failed."""
        return [job for job in self.unfinished if job.name not in self.failed]

    def _work(self, lock: IO[str]) -> None:
        said = recorded = monotonic()
        while True:
            self._collect()
            self._start(lock)
            if not self._running:
                return
            if monotonic() - recorded > _SECONDS_BETWEEN_RECORDS:
                recorded = monotonic()
                self._write_record()
            if monotonic() - said > SECONDS_BETWEEN_LINES:
                said = monotonic()
                self.tell(self.state())
            sleep(_SECONDS_BETWEEN_LOOKS)

    def _start(self, lock: IO[str]) -> None:
        """Starts what can be started, as far as there are workers."""
        if len(self._running) == self.comparison.workers:
            return  # without a look at every folder
        left = self.unfinished
        wanted = self._wanted(left)
        for job in left:
            if len(self._running) == self.comparison.workers:
                return
            if job.name not in wanted or job.name in self._running or not self._can_start(job):
                continue
            self._check(job)
            folder = self.folder.run(job.name)
            at, log = folder.recorded_step(), self.folder.log_file(job.name)
            self._first_steps[job.name] = at
            self.failed_before.pop(job.name, None)
            if at == 0:
                self.seconds.pop(job.name, None)  # of a run whose folder was removed
                self.untimed.discard(job.name)
            self._running[job.name] = Training(
                [*job.words, *self._flags], log, self.comparison.threads, lock.fileno()
            )
            note_processes(lock, [os.getpid(), *(of.pid for of in self._running.values())])
            self.tell(f"{job.name}: " + (f"goes on at step {at}" if at else "started"))

    def _wanted(self, left: Sequence[Job]) -> set[str]:
        """Of the jobs that are left those that are to be run whichever tries are chosen."""
        wanted: set[str] = set()
        for job in reversed(left):  # each before what it needs
            if not job.undecided and (job.entry in self.comparison.rows or job.name in wanted):
                wanted |= {job.name, *job.needs}
        return wanted

    def _can_start(self, job: Job) -> bool:
        needs = [self.plan.jobs[name] for name in job.needs]
        ready = not job.undecided and all(self.is_finished(need) for need in needs)
        return ready and job.name not in self.failed

    def _collect(self) -> None:
        """Takes in the trainings that have ended."""
        for name, training in list(self._running.items()):
            if (status := training.status) is None:
                continue
            self._take_seconds(name)
            if status:
                self.failed[name] = status
                lines = "".join(f"\n    {line}" for line in training.last_lines())
                self.tell(f"{name}: failed with status {status} ({training.log}):{lines}")
            elif self._is_done(name):
                self.tell(f"{name}: finished after {duration(self.seconds[name])}")
            else:  # it would be started again and again
                self.failed[name] = 1
                self.tell(f"{name}: ended, and is not finished ({training.log})")
            self._write_record()
            self.tell(self.state())

    def _is_done(self, name: str) -> bool:
        self.look()
        job = self.plan.jobs.get(name)  # what lost to another try is there no more
        return job is None or job.undecided != () or self.is_finished(job)

    def _take_seconds(self, name: str) -> None:
        training = self._running.pop(name)
        self.seconds[name] = self.seconds.get(name, 0.0) + training.seconds

    def _progress(self, name: str) -> str:
        job = self.plan.jobs[name]
        return f"{self.folder.run(name).recorded_step()} of {self._steps(job)}"

    def _measured(self) -> list[Measured]:
        """Finished runs, and those that run, since their start."""
        found = []
        for job in self.plan.jobs.values():
            if job.name in self._running:
                made = self.folder.run(job.name).recorded_step() - self._first_steps[job.name]
                seconds = self._running[job.name].seconds
            elif self.is_finished(job) and job.name in self.seconds.keys() - self.untimed:
                made, seconds = self._steps(job), self.seconds[job.name]
            else:
                continue
            found.append(Measured(job.entry, job.phase, seconds, made))
        return found

    def recipe(self, job: Job) -> Recipe:
        """What a job's words say. Raises UserError where they are refused, with the row's name."""
        if job.words not in self._recipes:
            try:
                self._recipes[job.words] = load_recipe(job.words)
            except UserError as error:
                raise UserError(f"{job.entry}: {error}") from error
        return self._recipes[job.words]

    def _steps(self, job: Job) -> int:
        return self.recipe(job).trainer.max_steps

    def _check(self, job: Job) -> None:
        """Raises UserError where a job trains nothing, or has begun with other settings."""
        if job.words in self._checked:
            return  # a run keeps what it began with, and to read it again takes a fifth of a second
        recipe, folder = self.recipe(job), self.folder.run(job.name)
        named = any(word.startswith("architecture_file=") for word in job.words)
        if job.phase == "retrain" and recipe.retrain.paths in _OF_A_SEARCH and not named:
            raise UserError(
                f"'{job.entry}' has no architecture to train; expected search: NAME of a search "
                f"under 'runs' ({', '.join(self.comparison.runs) or 'there is none'}), or a "
                "setting architecture_file=..."
            )
        if job.undecided or not folder.recipe_file.is_file() or not folder.has_begun:
            return
        # fit lets a run have more steps; a comparison has one number of them
        steps = folder.recipe().trainer.max_steps, recipe.trainer.max_steps
        of_steps = "" if steps[0] == steps[1] else f"trainer.max_steps: {steps[0]} -> {steps[1]}"
        if changes := folder.changes(recipe) or of_steps:
            raise UserError(
                f"The comparison has changed since {folder.path} began ({changes}). Give the file "
                "its settings back, remove that folder and those of what needs it, or start "
                "another comparison with name=..."
            )
        self._checked.add(job.words)

    def _validation_mean(self, job: Job) -> float | None:
        """Of a finished run. Raises UserError where it was not scored on validation."""
        if not self.is_finished(job):
            return None
        of = self.folder.run(job.name).scores().get("splits", {}).get("val")
        if of is None:
            raise UserError(
                f"{job.entry} has several tries, but {job.name} has no scores on val to compare "
                "them by. Pack the domains with a labelled val split, and do not train on it."
            )
        return float(of["mean"])

    def _write_record(self) -> None:
        self.folder.write_record(self.record())

    def record(self) -> dict[str, Any]:
        """What comparison.json says: see `mdl.results.compared`."""
        of, running = self.comparison, self._running
        left = {job.name for job in self.unfinished}
        seconds = {name: training.seconds for name, training in running.items()}
        rows = {}
        for name, row in of.rows.items():
            means = self.validation.get(name, [None])
            tries = [
                asdict(one) | {"val": mean} for one, mean in zip(row.tries, means, strict=True)
            ]
            winner = self.plan.winners.get(name) if of.tuned(name) else 0
            rows[name] = asdict(row) | {"winner": winner, "tries": tries}
        jobs = {
            job.name: {
                "entry": job.entry,
                "phase": job.phase,
                "seed": job.seed,
                "draw": job.draw,
                "attempt": job.attempt,
                "needs": [need.name for need in self.plan.chain(job)],
                "finished": self.is_finished(job),
                "left": job.name in left,
                "undecided": bool(job.undecided),
            }
            for job in self.plan.jobs.values()
        }
        return {
            "format": FORMAT,
            "name": of.name,
            "command": self.command,
            "seeds": list(of.seeds),
            "tuning_seed": of.tuning_seed,
            "baseline": of.baseline,
            "reference": of.reference,
            "main": of.main,
            "bars": [list(rows) for rows in of.bars],
            "rows": rows,
            "jobs": jobs,
            "running": sorted(running),
            "untimed": sorted(self.untimed),
            "failed": {job: self.failure(job) for job in left if self.failure(job) is not None},
            "seconds": {
                name: self.seconds.get(name, 0.0) + seconds.get(name, 0.0)
                for name in {**self.seconds, **seconds}
                if name not in self.untimed
            },
        }
