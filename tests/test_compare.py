"""A whole comparison as a process, on real files; what it refuses, without one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mdl import compare
from mdl.comparison.comparison_file import read_comparison
from mdl.comparison.comparison_folder import ComparisonFolder
from mdl.comparison.runner import Runner
from mdl.comparison.training import Training
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.recipe_files import load_recipe
from mdl.run_folder import RunFolder
from tests.conftest import SMALL_SPACE


@pytest.fixture
def file(packed: Path, tmp_path: Path) -> Path:
    """Two domains; a search, a row of it with two tries, and a row without."""
    content = {
        "name": "small",
        "runs_dir": str(tmp_path / "runs"),
        "seeds": [0],
        "workers": 2,
        "settings": [
            *SMALL_SPACE,
            f"data.root={packed}",
            "data.domains=[birds,cars]",
            "data.image_size=12",
            "data.load_size=12",
            "data.batch_size=4",
            "data.workers=0",
            "trainer.validation_interval=4",
            "trainer.checkpoint_interval=2",
            "trainer.record_interval=2",
            "trainer.accelerator=cpu",
            "search.held_out_batch_size=4",
        ],
        "search_settings": ["trainer.max_steps=6"],
        "retrain_settings": ["trainer.max_steps=6"],
        "main": "found",
        "runs": {"a_search": {}},
        "rows": {
            "found": {"search": "a_search", "tries": [[], ["optimizer.learning_rate=1e-9"]]},
            "common": {"settings": ["retrain.paths=common"]},
        },
    }
    file = tmp_path / "comparison.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def folder_of(file: Path) -> ComparisonFolder:
    return ComparisonFolder(file.parent / "runs" / "small")


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mdl.compare", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output


def finished(file: Path) -> dict[str, float]:
    """Finished run -> when its product was written."""
    folder = folder_of(file)
    jobs: dict[str, Any] = folder.record().get("jobs", {})
    products = {"search": "architecture.json", "retrain": "scores.json"}
    return {
        name: (folder.run(name).path / products[job["phase"]]).stat().st_mtime
        for name, job in jobs.items()
        if job["finished"]
    }


def test_a_stopped_comparison_goes_on_and_repeats_nothing(file: Path) -> None:
    process = start(file)
    while not (before := finished(file)) and process.poll() is None:
        time.sleep(0.05)
    with pytest.raises(UserError, match=f"is being worked on by process {process.pid}, "):
        compare.main([str(file)])
    process.send_signal(signal.SIGTERM)
    said = ended(process)
    assert process.returncode == 130, said
    assert f"Go on with: python -m mdl.compare {file}" in said
    before = finished(file)
    assert 1 <= len(before) < 4
    trainings = (folder_of(file).path / ".lock").read_text().split(", ")[1:]
    assert not any(Path("/proc", pid).is_dir() for pid in trainings)
    spent = folder_of(file).record()["seconds"]

    process = start(file)
    said = ended(process)
    assert process.returncode == 0, said
    after = finished(file)
    assert len(after) == 4
    assert before.items() <= after.items()
    record = folder_of(file).record()
    assert all(record["seconds"][name] == spent[name] for name in before)
    tries = record["rows"]["found"]["tries"]
    folder = folder_of(file)
    for run, of in zip(("found-seed0", "found-try2-seed0"), tries, strict=True):
        assert of["val"] == folder.run(run).scores()["splits"]["val"]["mean"]
    best = max(range(2), key=lambda place: tries[place]["val"])
    assert record["rows"]["found"]["winner"] == best
    assert "4 of 4 runs done" in said and "Next: python -m mdl.report" in said


class FailingSearches:
    """Stands for a training: ends at once, a search with a status that is not 0."""

    status, pid, seconds = 0, 0, 1.0
    failure = 2

    def __init__(self, words: Sequence[str], log: Path, threads: int, lock: int) -> None:
        recipe = load_recipe(words)
        log.write_text("much\nerror: the reason\n")
        if recipe.phase == "search":
            self.status = self.failure
        else:
            claim(recipe)
        self.log = log

    last_lines = Training.last_lines


def claim(recipe: Recipe) -> None:
    """Leaves the folder of a finished training, as `mdl.fit` does."""
    folder = RunFolder.of(recipe)
    folder.claim(recipe, folder.state())
    folder.write_scores({"step": recipe.trainer.max_steps, "splits": {"val": {"mean": 0.5}}})


@pytest.mark.parametrize(("status", "end"), [(2, UserError), (1, SystemExit)])
def test_a_run_that_fails_is_shown_and_the_others_go_on(
    status: int,
    end: type[BaseException],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mdl.comparison.runner.Training", FailingSearches)
    monkeypatch.setattr("mdl.comparison.runner.stop", lambda trainings: None)
    monkeypatch.setattr(FailingSearches, "failure", status)
    with pytest.raises(end) as raised:
        compare.main([str(file), "workers=1"])
    captured = capsys.readouterr()
    assert f"a_search-seed0: failed with status {status}" in captured.out
    assert "    error: the reason" in captured.out
    summary = "1 run failed: a_search-seed0; 2 need it and did not start."
    assert summary in str(raised.value) + captured.err
    assert list(finished(file)) == ["common-seed0"]
    # it is still told afterwards, until the run is tried again
    compare.main([str(file), "--dry-run"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"failed with status {status}" in said and "runs done; failed: a_search-seed0" in said
    folder = folder_of(file)
    assert folder.record()["failed"] == {"a_search-seed0": status}
    monkeypatch.setattr(FailingSearches, "failure", 3)
    with pytest.raises(SystemExit):
        compare.main([str(file), "workers=1"])
    assert folder.record()["failed"] == {"a_search-seed0": 3}


def test_a_run_that_ends_and_is_not_finished_is_not_started_for_ever(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mdl.comparison.runner.Training", FailingSearches)
    monkeypatch.setattr("mdl.comparison.runner.stop", lambda trainings: None)
    monkeypatch.setattr(FailingSearches, "failure", 0)
    with pytest.raises(SystemExit):
        compare.main([str(file), "workers=1"])
    assert "a_search-seed0: ended, and is not finished" in capsys.readouterr().out
    assert list(finished(file)) == ["common-seed0"]


def test_what_went_on_while_nobody_looked_has_no_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that was killed has left a training, which ended by itself."""
    monkeypatch.setattr("mdl.comparison.runner.Training", FailingSearches)
    monkeypatch.setattr("mdl.comparison.runner.stop", lambda trainings: None)
    runner = Runner(read_comparison([str(file)]), print, "")
    claim(load_recipe(runner.plan.jobs["common-seed0"].words))
    left = runner.record() | {"running": ["common-seed0"], "seconds": {"common-seed0": 3.0}}
    folder_of(file).write_record(left)
    for _ in range(2):
        with pytest.raises(UserError):  # of the searches
            compare.main([str(file)])
        assert "common-seed0" not in folder_of(file).record()["seconds"]


def test_what_only_a_try_that_may_lose_needs_is_not_begun(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(file.read_text())
    content["runs"] |= {"b_search": {}}
    content["rows"]["found"] = {"tries": [{"search": "a_search"}, {"search": "b_search"}]}
    content["seeds"] = [0, 1]
    file.write_text(yaml.safe_dump(content))
    runner = Runner(read_comparison([str(file)]), print, "")
    wanted = runner._wanted(runner.unfinished)
    assert {"a_search-seed0", "b_search-seed0", "common-seed1"} <= wanted
    assert not {"a_search-seed1", "found-seed1"} & wanted
    assert "a_search-seed1" in [job.name for job in runner.unfinished]


def test_a_plan_is_shown_and_nothing_is_begun(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.main([str(file), "--dry-run", "seeds=[0,1]"])
    said = capsys.readouterr().out
    for job in ("a_search-seed1", "found-seed0", "found-try2-seed0", "common-seed1"):
        assert job in said
    assert "0 of 7 runs done; time left: not known" in said
    assert not folder_of(file).path.exists()


def test_a_misspelt_setting_is_refused_before_anything_runs(file: Path) -> None:
    with pytest.raises(UserError, match="found: Unknown recipe key 'serch'"):
        compare.main([str(file), "serch.beta1=0.5"])
    assert not folder_of(file).path.exists()


def test_a_row_without_an_architecture_is_refused(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    content["rows"]["common"] = {"label": "nothing said"}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="'common' has no architecture to train.*a_search"):
        compare.main([str(file)])


def test_settings_that_have_changed_since_a_run_began_are_shown(file: Path) -> None:
    """Also of a finished run, which would not be started again."""
    runner = Runner(read_comparison([str(file)]), print, "")
    claim(load_recipe(runner.plan.jobs["common-seed0"].words))
    with pytest.raises(UserError, match=r"changed since .*common-seed0 began \(data.batch_size: 4"):
        compare.main([str(file), "data.batch_size=6"])


def test_a_begun_run_is_read_once_however_often_it_is_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(read_comparison([str(file)]), print, "")
    claim(load_recipe(runner.plan.jobs["common-seed0"].words))
    runner.look()

    def refuse(_: object) -> Recipe:
        raise AssertionError("a recipe was read again")

    monkeypatch.setattr(RunFolder, "recipe", refuse)
    runner.look()


def test_a_search_is_not_made_again_for_trainings_that_are_finished(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = Runner(read_comparison([str(file)]), print, "").plan.jobs
    for name in ("common-seed0", "found-seed0"):
        claim(load_recipe(jobs[name].words))
    left = Runner(read_comparison([str(file)]), print, "").unfinished
    assert [job.name for job in left] == ["a_search-seed0", "found-try2-seed0"]

    claim(load_recipe(jobs["found-try2-seed0"].words))
    compare.main([str(file), "--dry-run"])
    said = capsys.readouterr().out
    assert "3 of 3 runs done" in said
    assert "not needed" in said
    compare.main([str(file)])
    assert list(finished(file)) == ["found-seed0", "found-try2-seed0", "common-seed0"]
    assert not any(job["left"] for job in folder_of(file).record()["jobs"].values())


@pytest.mark.parametrize("change", [-1, 1])
def test_one_comparison_has_one_number_of_steps(file: Path, change: int) -> None:
    job = Runner(read_comparison([str(file)]), print, "").plan.jobs["common-seed0"]
    recipe = load_recipe(job.words)
    claim(recipe)
    with pytest.raises(UserError, match=r"changed since .*common-seed0 began \(trainer.max_steps"):
        compare.main([str(file), f"trainer.max_steps={recipe.trainer.max_steps + change}"])


def test_the_lock_of_a_killed_comparison_is_held_by_what_it_has_left(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "small")
    with folder.claimed() as lock:
        left = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()]
        )
        os.set_inheritable(lock.fileno(), False)
    with pytest.raises(UserError, match="trainings that it has left"), folder.claimed():
        pass
    left.communicate(b"\n")
    with folder.claimed():
        pass
