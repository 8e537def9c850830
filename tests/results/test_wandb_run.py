"""W&B's run of a run folder, at a service of this machine: outages, resumes and rebuildings."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import wandb

from mdl import fit, report
from mdl.errors import UserError
from mdl.results.metrics import read_metrics
from mdl.results.metrics_logger import MetricsFile
from mdl.results.wandb_run import STEP, WandbRun
from mdl.training.base import MultiDomainModule
from tests.dying import dying_at
from tests.results.offline_wandb import read_offline_rows
from tests.results.wandb_service import Service

SEARCH = "recipes/mpnas_search.yaml"
OF_WANDB = {"_step", "_timestamp", "_runtime", STEP}
Rows = dict[int, dict[str, Any]]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """What runs of this process log to; W&B waits for it for seconds only."""
    service = Service()
    service.start()
    for key, value in service.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    wandb.teardown()  # a process's W&B keeps what it began with
    yield service
    wandb.teardown()
    if service.is_up:
        service.stop()


@pytest.fixture
def words(small_run: list[str]) -> list[str]:
    return [SEARCH, *small_run, "wandb.mode=online", "trainer.record_interval=1"]


def run_of(words: list[str], name: str = "mpnas_search") -> Path:
    (runs,) = (word.removeprefix("runs_dir=") for word in words if word.startswith("runs_dir="))
    return Path(runs) / name


def in_file(run: Path) -> Rows:
    """What metrics.jsonl holds of each step."""
    rows: Rows = {}
    for record in read_metrics(run / "metrics.jsonl"):
        rows.setdefault(int(record.pop("step")), {}).update(record)
    return rows


def in_wandb(service: Service, run: Path) -> Rows:
    """What the service holds of each step; each is there once."""
    rows = service.rows((run / "wandb_id").read_text())
    assert [row["_step"] for row in rows] == sorted({row["_step"] for row in rows})
    assert all(row["_step"] == row[STEP] for row in rows)
    return {row["_step"]: scalars(row) for row in rows}


def scalars(row: dict[str, Any]) -> dict[str, Any]:
    """Without what W&B adds, and without pictures."""
    return {
        key: value
        for key, value in row.items()
        if key not in OF_WANDB and not key.startswith("architecture/")
    }


def assert_whole(service: Service, run: Path) -> None:
    """The service holds what metrics.jsonl does, each step once."""
    ours, theirs = in_file(run), in_wandb(service, run)
    assert list(ours) == list(theirs)
    for step, row in ours.items():
        assert theirs[step] == pytest.approx(row, rel=1e-12)
    assert max(ours) == 8


@contextmanager
def at_steps(happens: dict[int, Callable[[], object]]) -> Iterator[None]:
    """What happens to a training when it comes to some steps."""
    original = MultiDomainModule.weighted_sum

    def watched(self: MultiDomainModule, *given: Any) -> Any:
        if self.global_step in happens:
            happens.pop(self.global_step)()
        return original(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiDomainModule, "weighted_sum", watched)
        yield


def until(true: Callable[[], object]) -> Callable[[], None]:
    """Waits until something is so: W&B sends what it has every fifteen seconds."""

    def wait() -> None:
        for _ in range(1200):
            if true():
                return
            time.sleep(0.05)
        raise AssertionError("waited in vain")

    return wait


def test_a_resumed_run_goes_on_in_its_wandb_run_with_each_step_once(
    service: Service, words: list[str]
) -> None:
    run = run_of(words)
    with dying_at(5):
        fit.main(words)
    first = in_wandb(service, run)
    assert list(first) == [1, 2, 3, 4]  # its checkpoint is of step 3
    fit.main(words)
    assert len(service.runs) == 1
    assert_whole(service, run)
    last = service.rows((run / "wandb_id").read_text())[-1]
    assert last["architecture/path_map"]["_type"] == "image-file"
    places = [at for _, at, _ in service.streamed]
    assert places == sorted(set(places))  # nothing was sent twice


def test_a_killed_process_goes_on_in_its_wandb_run_with_each_step_once(
    service: Service, words: list[str]
) -> None:
    run = run_of(words)
    started = subprocess.Popen(
        [sys.executable, "-m", "mdl.fit", *words, "trainer.max_steps=2000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: any(service.runs.values()))()
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert len(in_wandb(service, run)) < max(in_file(run))
    steps = max(in_file(run)) + 3
    fit.main([*words, f"trainer.max_steps={steps}"])
    ours, theirs = in_file(run), in_wandb(service, run)
    assert list(ours) == list(theirs) == list(range(1, steps + 1))
    assert len(service.runs) == 1
    for step, row in ours.items():
        assert timeless(theirs[step]) == pytest.approx(timeless(row), rel=1e-12)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("throughput/")}


def test_an_outage_in_the_middle_is_made_up_for_when_the_service_is_back(
    service: Service, words: list[str]
) -> None:
    run = run_of(words)

    def outage() -> None:
        until(lambda: any(service.runs.values()))()
        service.stop()

    def end() -> None:
        (log,) = run.glob("wandb/run-*/logs/debug-internal.log")
        until(lambda: "connection refused" in log.read_text())()
        service.start()

    with at_steps({3: outage, 5: end}):
        fit.main(words)
    assert_whole(service, run)


def test_dropped_connections_and_lost_answers_leave_each_step_once(
    service: Service, words: list[str]
) -> None:
    def back() -> None:
        until(lambda: service.dropped)()
        service.forgets_answers, service.drops = 1, False

    def drop() -> None:
        service.drops = True
        threading.Thread(target=back).start()

    with at_steps({3: drop}):
        fit.main(words)
    assert service.forgets_answers == 0
    assert_whole(service, run_of(words))


def test_an_outage_at_the_end_does_not_hold_up_the_run_and_nothing_is_sent_twice(
    service: Service, words: list[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = run_of(words)
    with dying_at(5):
        fit.main(words)
    wandb.teardown()
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    with at_steps({6: service.stop}), caplog.at_level(logging.WARNING):
        fit.main(words)
    assert list(in_file(run)) == list(range(1, 9))
    (warning,) = (line for line in caplog.messages if "W&B" in line)
    assert "did not take all records (Timed out finishing run.)" in warning
    assert f"python -m mdl.report {run} --wandb" in warning
    wandb.teardown()
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "60")
    service.start()
    report.main([str(run), "--wandb"])
    assert f"{run}: 4 steps sent" in capsys.readouterr().out
    assert_whole(service, run)
    assert [(at, count) for _, at, count in service.streamed] == [(0, 4), (4, 4)]


def test_wandbs_process_may_die_without_the_training(service: Service, words: list[str]) -> None:
    """In a process of its own: W&B in a process does not get over it."""
    run = run_of(words)
    started = subprocess.Popen(
        [sys.executable, "-m", "mdl.fit", *words, "trainer.max_steps=60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: in_file(run))()
    children = Path(f"/proc/{started.pid}/task").glob("*/children")
    processes = [number for child in children for number in child.read_text().split()]
    (core,) = (n for n in processes if b"wandb-core" in Path(f"/proc/{n}/cmdline").read_bytes())
    os.kill(int(core), signal.SIGKILL)
    _, said = started.communicate()
    assert started.returncode == 0
    assert said.count("W&B did not take all records") == 1
    assert list(in_file(run)) == list(range(1, 61))
    report.main([str(run), "--wandb"])
    assert in_wandb(service, run) == in_file(run)


def test_without_service_a_run_is_whole_and_is_sent_later(
    service: Service, words: list[str], caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = run_of(words)
    service.stop()
    with caplog.at_level(logging.WARNING):
        fit.main(words)
    (warning,) = (line for line in caplog.messages if "W&B" in line)
    assert "W&B could not be reached" in warning
    assert f"python -m mdl.report {run} --wandb" in warning
    offline = read_offline_rows(run)
    assert {step: scalars(row) for step, row in offline.items()} == in_file(run)
    wandb.teardown()
    with pytest.raises(UserError, match=f"W&B did not take all of {run}: .* Nothing is lost"):
        report.main([str(run), "--wandb"])
    wandb.teardown()
    service.start()
    report.main([str(run), "--wandb"])
    assert f"{run}: 8 steps sent" in capsys.readouterr().out
    assert_whole(service, run)
    report.main([str(run), "--wandb"])
    assert f"{run}: 0 steps sent" in capsys.readouterr().out
    assert_whole(service, run)


def made_run(folder: Path) -> tuple[MetricsFile, WandbRun]:
    """The two loggers of a run."""
    folder.mkdir(exist_ok=True)
    metrics = MetricsFile(folder / "metrics.jsonl", from_step=10**6)
    return metrics, WandbRun(folder, metrics.file, "it", "mdl", "online", strict=False)


def log(loggers: tuple[MetricsFile, WandbRun], steps: range) -> None:
    for step in steps:
        for logger in loggers:
            logger.log_metrics({"train/loss/birds": step / 8}, step)


def test_a_run_deleted_in_wandb_is_rebuilt_under_an_id_of_its_own(
    service: Service, tmp_path: Path
) -> None:
    loggers = made_run(tmp_path / "it")
    log(loggers, range(1, 5))
    loggers[1].close(whole=True)
    before = (tmp_path / "it" / "wandb_id").read_text()
    service.deleted.add(before)
    del service.runs[before]
    loggers = made_run(tmp_path / "it")
    log(loggers, range(5, 9))
    loggers[1].close(whole=True)
    assert (tmp_path / "it" / "wandb_id").read_text() != before
    assert_whole(service, tmp_path / "it")


def test_the_newest_offline_folder_holds_the_whole_run(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (range(1, 5), range(5, 9)):
        metrics, _ = made_run(tmp_path / "it")
        run = WandbRun(tmp_path / "it", metrics.file, "it", "mdl", "offline", strict=False)
        log((metrics, run), steps)
        run.close(whole=True)
    assert len(list(tmp_path.glob("it/wandb/offline-run-*"))) == 2
    rows = read_offline_rows(tmp_path / "it")
    assert {step: scalars(row) for step, row in rows.items()} == in_file(tmp_path / "it")
    assert list(rows) == list(range(1, 9))
    assert not service.runs


def test_a_run_is_sent_only_where_somebody_is_logged_in(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="cannot be sent to W&B: its mode is offline. Log in"):
        report.main([str(finished_run), "--wandb"])
