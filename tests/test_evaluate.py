"""Scores, of a run's end and of mdl.evaluate: whole or not at all, and of one checkpoint."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mdl import evaluate, fit, report
from mdl.command import INTERRUPTED, STOPPED, run_command
from mdl.errors import UserError
from mdl.recipe import TrainerRecipe
from mdl.training.base import MultiDomainModule
from mdl.training.retrain import RetrainModule
from tests.disks import damage_weights
from tests.test_fit import RETRAIN, assert_same_run, metrics, run_of


@pytest.fixture
def words(small_run: list[str]) -> list[str]:
    return [RETRAIN, *small_run, "retrain.paths=common", "name=it"]


def scores_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return content


def told_in_a_test(monkeypatch: pytest.MonkeyPatch, number: int, where: str) -> None:
    """This process gets the signal once, in that method of a module that is scored."""
    original, told = getattr(MultiDomainModule, where, None), []

    def with_signal(self: MultiDomainModule, *given: Any, **named: Any) -> Any:
        if not told and self.trainer.testing:
            told.append(number)
            os.kill(os.getpid(), number)
        return original(self, *given, **named) if original is not None else None

    monkeypatch.setattr(MultiDomainModule, where, with_signal, raising=False)


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGTERM, "on_test_start"),
        (signal.SIGUSR1, "on_test_start"),
        (signal.SIGTERM, "on_test_model_eval"),  # before our own handler is there
    ],
)
def test_a_signal_while_a_run_is_scored_leaves_it_unfinished_and_it_goes_on(
    words: list[str],
    small_run: list[str],
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    where: str,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        told_in_a_test(patch, number, where)
        with pytest.raises(SystemExit) as ended:
            fit.main(words)
    assert ended.value.code == STOPPED
    assert f"stopped at step 8 ({number.name}); the same command goes on" in capsys.readouterr().out
    run = run_of(small_run, "it")
    assert not (run / "scores.json").exists()
    assert signal.getsignal(number) == signal.SIG_DFL
    fit.main(words)
    fit.main([*words, "name=unbroken"])
    assert_same_run(run, run_of(small_run, "unbroken"))


def test_an_evaluation_that_is_stopped_says_so_and_leaves_what_was_known(
    words: list[str], small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main(words)
    run = run_of(small_run, "it")
    before = scores_of(run)
    with pytest.MonkeyPatch.context() as patch:
        told_in_a_test(patch, signal.SIGTERM, "on_test_start")
        with pytest.raises(SystemExit) as ended:
            evaluate.main([str(run), "--split", "train"])
    assert ended.value.code == STOPPED
    assert "was stopped (SIGTERM); start it again" in capsys.readouterr().out
    assert scores_of(run) == before


@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_ctrl_c_while_images_are_scored_is_told(
    words: list[str],
    small_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    if command == "evaluate":
        fit.main(words)
    told_in_a_test(monkeypatch, signal.SIGINT, "on_test_start")
    given = words if command == "fit" else [str(run_of(small_run, "it"))]
    monkeypatch.setattr(sys, "argv", ["python", *given])
    try:
        status: Any = run_command(fit.main if command == "fit" else evaluate.main)
    except SystemExit as ended:
        status = ended.code
    assert status == INTERRUPTED
    told = capsys.readouterr()
    assert "Stopping after this step; Ctrl-C again stops at once" in told.err
    assert "the same command goes on" in told.out + told.err


def test_scores_of_a_checkpoint_that_was_written_over_are_dropped(
    words: list[str], small_run: list[str]
) -> None:
    fit.main(words)
    run = run_of(small_run, "it")
    evaluate.main([str(run), "--split", "train"])
    evaluate.main([str(run), "--split", "test", "--checkpoint", "last"])
    before = scores_of(run)
    assert list(before["splits"]) == ["val", "test", "train"]
    assert before["other_checkpoints"]["last.ckpt"]["test"]["checkpoint_step"] == 8
    fit.main([*words, "trainer.max_steps=40"])
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    after = scores_of(run)
    assert best > before["splits"]["train"]["checkpoint_step"]  # else this shows nothing
    assert {of["checkpoint_step"] for of in after["splits"].values()} == {best}
    assert "train" not in after["splits"] and "other_checkpoints" not in after


def test_what_changes_no_result_may_be_given_to_an_evaluation(
    words: list[str], small_run: list[str]
) -> None:
    fit.main(words)
    run = run_of(small_run, "it")
    before = scores_of(run)
    evaluate.main([str(run), "data.evaluation_batch_size=3", "--split", "test", "data.workers=1"])
    assert scores_of(run)["splits"]["test"]["accuracy"] == before["splits"]["test"]["accuracy"]
    assert "evaluation_batch_size: 3" not in (run / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"cannot be another \(seed: 0 -> 5\); expected keys that"):
        evaluate.main([str(run), "seed=5"])
    with pytest.raises(UserError, match="'fast' is no setting; expected key=value"):
        evaluate.main([str(run), "fast"])
    with pytest.raises(UserError, match="--partial is of a submission"):
        evaluate.main([str(run), "--partial"])


def test_a_want_of_memory_in_an_evaluation_names_what_can_be_given(
    words: list[str], small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit.main(words)

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(RetrainModule, "test_step", full)
    with pytest.raises(UserError, match=r"Out of memory, evaluating .* no result. Start it again."):
        evaluate.main([str(run_of(small_run, "it"))])


def test_ctrl_c_pressed_twice_stops_at_once(words: list[str], small_run: list[str]) -> None:
    def twice(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RetrainModule, "weighted_sum", twice)
        fit.main(words)
    assert not list((run_of(small_run, "it") / "checkpoints").iterdir())
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_a_split_is_scored_of_the_domains_that_have_it(
    packed: Path, words: list[str], small_run: list[str], tmp_path: Path, capsys: Any
) -> None:
    """To the same scores as where all have it."""
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    file = data / "types" / "domain.json"
    content = json.loads(file.read_text())
    del content["splits"]["test"]
    file.write_text(json.dumps(content))
    fit.main([*words, "name=whole"])
    capsys.readouterr()
    fit.main([*words, f"data.root={data}"])
    assert "No test scores: types without labelled test images; means are of" in _said(capsys)
    whole, part = (scores_of(run_of(small_run, name))["splits"] for name in ("whole", "it"))
    assert part["val"] == whole["val"]
    expected = {d: of for d, of in whole["test"]["accuracy"].items() if d != "types"}
    assert part["test"]["accuracy"] == expected
    assert part["test"]["mean"] == pytest.approx(sum(expected.values()) / 2)
    recorded = [line for line in metrics(run_of(small_run, "it")) if "test/accuracy/mean" in line]
    assert recorded[0]["test/accuracy/mean"] == pytest.approx(part["test"]["mean"])
    assert "test/accuracy/types" not in recorded[0]
    run = str(run_of(small_run, "it"))
    evaluate.main([run])
    assert "types without labelled test images; means are of the others" in _said(capsys)
    assert scores_of(Path(run))["splits"] == part
    report.main([run])
    assert "types" in (Path(run) / "report.md").read_text()


def test_a_damaged_checkpoint_does_not_stop_the_scores_of_another(
    words: list[str], small_run: list[str]
) -> None:
    fit.main(words)
    run = run_of(small_run, "it")
    evaluate.main([str(run), "--split", "test", "--checkpoint", "last"])
    before = scores_of(run)
    damage_weights(run / "checkpoints" / "last.ckpt")
    evaluate.main([str(run), "--split", "train", "--checkpoint", "best"])
    after = scores_of(run)
    assert after["other_checkpoints"] == before["other_checkpoints"]
    assert set(after["splits"]) == {*before["splits"], "train"}


def test_a_submission_is_answered_in_the_run_s_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[bool] = []

    def answered(*_: Any) -> dict[str, list[int]]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return {}

    monkeypatch.setattr(evaluate, "predict", answered)
    monkeypatch.setattr(evaluate, "write_submission", lambda *_: 0)
    for precision in ("32-true", "bf16-mixed"):
        trainer = TrainerRecipe(max_steps=1, accelerator="cpu", precision=precision)
        nothing: Any = torch.nn.Identity()
        evaluate._submit(nothing, nothing, {}, tmp_path / "r.zip", trainer)
    assert seen == [False, True]


def test_a_callback_that_looks_for_a_record_that_is_not_there_is_told(words: list[str]) -> None:
    stop = "{class: lightning.pytorch.callbacks.EarlyStopping, monitor: val/acc}"
    with pytest.raises(UserError, match=r"A callback .* refuses to go on at step 4: Early"):
        fit.main([*words, f"callbacks.stop={stop}"])


def _said(capsys: Any) -> str:
    return " ".join(capsys.readouterr().out.split())
