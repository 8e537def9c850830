"""Runs that break on real faults: each says what to do, keeps what was saved, and goes on."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mdl import evaluate, fit
from mdl.errors import OwnError, ProcessLost, UserError
from mdl.faults import _lost_worker
from mdl.run_folder import RunFolder
from mdl.training.base import MultiDomainModule
from mdl.training.checkpoints import read_whole
from tests.conftest import small_words
from tests.disks import closed, damage_weights, fill, mounted, no_file_above
from tests.dying import dying_at
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, metrics, weights
from tests.test_ranks import LONG, begun

PHASES = pytest.mark.parametrize("recipe", [SEARCH, RETRAIN])
# no search needed; a record at each step
WORDS = ["retrain.paths=common", "architecture_file=null", "name=it", "trainer.record_interval=1"]


@pytest.fixture(scope="module")
def unbroken(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Recipe -> the run that nothing broke, made once."""
    root = tmp_path_factory.mktemp("unbroken")

    def run(recipe: str) -> Path:
        runs = root / Path(recipe).stem
        if not (runs / "it").is_dir():
            fit.main([recipe, *small_words(packed, runs), *WORDS])
        return runs / "it"

    return run


def words_for(recipe: str, packed: Path, runs: Path) -> list[str]:
    return [recipe, *small_words(packed, runs), *WORDS]


def step_of(run: Path, name: str = "last.ckpt") -> int:
    step: int = read_whole(run / "checkpoints" / name)["global_step"]
    return step


def assert_same_end(run: Path, other: Path) -> None:
    """Weights, records and products, to the bit."""
    assert_same_run(run, other)
    for name in ("architecture.json", "scores.json"):
        assert (run / name).is_file() == (other / name).is_file()
        if (run / name).is_file():
            assert (run / name).read_text() == (other / name).read_text()
    best = [folder / "checkpoints" / "best.ckpt" for folder in (run, other)]
    assert best[0].is_file() == best[1].is_file()
    if best[0].is_file():
        a, b = weights(run, "best.ckpt"), weights(other, "best.ckpt")
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert not list(run.rglob(".*partial*"))


def at_step(step: int, fault: Callable[[], object], where: str = "weighted_sum") -> Any:
    """Patches the modules so that the fault happens at that step, once."""
    original, happened = getattr(MultiDomainModule, where), []

    def faulty(self: MultiDomainModule, *given: Any) -> Any:
        if self.global_step == step and not happened:
            happened.append(step)
            fault()
        return original(self, *given)

    patch = pytest.MonkeyPatch()
    patch.setattr(MultiDomainModule, where, faulty)
    return patch


DAMAGES = {
    "cut": lambda file: os.truncate(file, 5000),
    "empty": lambda file: os.truncate(file, 0),
    "a bit": damage_weights,
}


@pytest.mark.parametrize(
    ("recipe", "how"),
    [(SEARCH, "cut"), (SEARCH, "a bit"), (RETRAIN, "empty"), (RETRAIN, "a bit")],
)
def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(
    unbroken: Callable[[str], Path],
    packed: Path,
    tmp_path: Path,
    recipe: str,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """best.ckpt is then of a later step than what the run goes on from."""
    words, run = words_for(recipe, packed, tmp_path), tmp_path / "it"
    with dying_at(7):
        fit.main(words)
    saved = step_of(run), step_of(run, "previous.ckpt")
    assert saved == (6, 4 if recipe == RETRAIN else 3)
    last = run / "checkpoints" / "last.ckpt"
    DAMAGES[how](last)
    damaged = last.read_bytes()
    capsys.readouterr()
    fit.main(words)
    out = capsys.readouterr().out
    assert f"{last} is damaged (" in out
    assert f"was renamed to last.damaged.ckpt: {run} goes on at step {saved[1]}, from prev" in out
    assert (run / "checkpoints" / "last.damaged.ckpt").read_bytes() == damaged
    assert_same_end(run, unbroken(recipe))


def test_where_both_are_damaged_the_run_is_refused_and_nothing_is_touched(
    packed: Path, tmp_path: Path
) -> None:
    words, run = words_for(SEARCH, packed, tmp_path), tmp_path / "it"
    with dying_at(7):
        fit.main(words)
    for name in ("last.ckpt", "previous.ckpt"):
        damage_weights(run / "checkpoints" / name)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=r"No checkpoint to go on .*last.* and .*previous.*remove"):
        fit.main(words)
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_damaged_best_checkpoint_is_told_with_what_takes_its_place(
    packed: Path, tmp_path: Path, unbroken: Callable[[str], Path]
) -> None:
    words, run = words_for(RETRAIN, packed, tmp_path), tmp_path / "it"
    shutil.copytree(unbroken(RETRAIN), run)
    best = run / "checkpoints" / "best.ckpt"
    damage_weights(best)
    told = r"best.ckpt cannot be read .* move it away to have last.ckpt taken in its place"
    with pytest.raises(UserError, match=told):
        evaluate.main([str(run)])
    (run / "scores.json").unlink()
    with pytest.raises(UserError, match=told):
        fit.main(words)
    best.rename(best.with_name("best.away"))
    fit.main(words)
    assert '"checkpoint": "last.ckpt"' in (run / "scores.json").read_text()


@PHASES
def test_a_full_disk_at_a_checkpoint_ends_the_run_which_goes_on_when_there_is_space(
    unbroken: Callable[[str], Path], packed: Path, tmp_path: Path, recipe: str
) -> None:
    with mounted(tmp_path / "disk", 8) as disk:
        words, run = words_for(recipe, packed, disk), disk / "it"
        with dying_at(4):
            fit.main(words)
        saved = {file.name: file.read_bytes() for file in run.glob("checkpoints/*")}
        filler = fill(disk, leave=30_000)  # for records, not for a checkpoint
        with pytest.raises(UserError, match=r".ckpt could not be written: No space left on dev.*"):
            fit.main(words)
        assert saved == {file.name: file.read_bytes() for file in run.glob("checkpoints/*")}
        assert not list(run.rglob(".*partial*"))
        filler.unlink()
        fit.main(words)
        assert_same_end(run, unbroken(recipe))


@PHASES
def test_a_limit_on_files_ends_the_run_as_a_full_disk_does(
    unbroken: Callable[[str], Path], packed: Path, tmp_path: Path, recipe: str
) -> None:
    """As the test before; needs no rights."""
    words, run = words_for(recipe, packed, tmp_path), tmp_path / "it"
    with dying_at(4):
        fit.main(words)
    step = step_of(run)
    told = r".ckpt could not be written: File too large \(0.\d MB are needed, .* start the same com"
    with no_file_above(30_000), pytest.raises(UserError, match=told):
        fit.main(words)
    assert step_of(run) == step
    assert not list(run.rglob(".*partial*"))
    fit.main(words)
    assert_same_end(run, unbroken(recipe))


def test_a_full_disk_at_a_record_leaves_whole_lines(
    packed: Path, tmp_path: Path, unbroken: Callable[[str], Path]
) -> None:
    with mounted(tmp_path / "disk", 8) as disk:
        words, run = words_for(SEARCH, packed, disk), disk / "it"
        # eight records of a search are more than a block of the disk
        patch = at_step(3, lambda: fill(disk))
        with pytest.raises(UserError, match=r"metrics.jsonl could not be written: No space left"):
            fit.main([*words, "trainer.checkpoint_interval=100"])
        patch.undo()
        recorded = (run / "metrics.jsonl").read_text()
        assert recorded.endswith("\n") and len(metrics(run)) >= 3
        (disk / "filler").unlink()
        shutil.rmtree(run)
        with dying_at(7):
            fit.main(words)
        with (run / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 8, "train/lo')  # half a line, of a process that was killed
        fit.main(words)
        assert_same_end(run, unbroken(SEARCH))


@PHASES
def test_a_full_disk_at_the_end_leaves_the_products_to_the_next_start(
    packed: Path,
    tmp_path: Path,
    recipe: str,
    unbroken: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    product = "architecture.json" if recipe == SEARCH else "scores.json"
    write = fit._write_product
    with mounted(tmp_path / "disk", 8) as disk:
        words, run = words_for(recipe, packed, disk), disk / "it"
        with monkeypatch.context() as patch:
            patch.setattr(fit, "_write_product", lambda *of: (fill(disk), write(*of)))
            with pytest.raises(UserError, match=r"could not be written: No space left .* Free sp"):
                fit.main(words)
        assert not (run / product).exists()
        (disk / "filler").unlink()
        fit.main(words)
        assert weights(run).keys() == weights(unbroken(recipe)).keys()
        assert (run / product).read_text() == (unbroken(recipe) / product).read_text()


@PHASES
def test_a_read_only_disk_is_refused_before_any_training(
    packed: Path, tmp_path: Path, recipe: str, unbroken: Callable[[str], Path]
) -> None:
    with mounted(tmp_path / "disk", 8) as disk:
        words, run = words_for(recipe, packed, disk), disk / "it"
        with dying_at(4):
            fit.main(words)
        closed(disk, True)
        patch = at_step(0, lambda: pytest.fail("it trained"))
        with pytest.raises(UserError, match="/it could not be written: Read-only"):
            fit.main(words)
        with pytest.raises(UserError, match="/other could not be written: Read-only"):
            fit.main([*words, "name=other"])
        patch.undo()
        closed(disk, False)
        fit.main(words)
        assert_same_end(run, unbroken(recipe))
        closed(disk, True)
        fit.main(words)  # finished: says so, and writes nothing


@pytest.mark.parametrize("where", [".", "checkpoints"])
def test_a_folder_of_someone_else_is_refused_in_words(
    packed: Path, small_run: list[str], where: str
) -> None:
    from mdl.recipe_files import load_recipe

    with tempfile.TemporaryDirectory() as parent:
        recipe = load_recipe([SEARCH, *small_run, f"runs_dir={parent}"])
        folder = RunFolder.of(recipe)
        folder.claim(recipe, folder.state())
        for of in (Path(parent), folder.path, folder.checkpoints_dir):
            of.chmod(0o777)
        (folder.path / where).chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may write anywhere
            with pytest.raises(UserError, match="could not be written: Permission denied. Make"):
                folder.claim(recipe, folder.state())
        finally:
            os.seteuid(user)
            (folder.path / where).chmod(0o777)


def workers(of: int | None = None) -> list[int]:
    """Decoding processes of a process, or of this one; the oldest first."""
    process, found = of or os.getpid(), []
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        try:
            name = Path(f"/proc/{child}/comm").read_text().strip()
        except OSError:
            continue
        if name == "pt_data_worker":  # torch's name; other tests have children of other kinds
            found.append(int(child))
    return found


def test_a_killed_decoding_process_ends_the_run_which_goes_on(
    unbroken: Callable[[str], Path], packed: Path, tmp_path: Path
) -> None:
    words, run = words_for(RETRAIN, packed, tmp_path), tmp_path / "it"
    # the first child is the training's: those of a validation come and go
    patch = at_step(5, lambda: os.kill(workers()[0], signal.SIGKILL))
    told = r"A decoding process was lost at step \d+: .*DataLoader worker .*lower data.workers"
    with pytest.raises(ProcessLost, match=told):
        fit.main([*words, "data.workers=2", "trainer.max_steps=40"])
    patch.undo()
    fit.main([*words, "data.workers=1", "trainer.max_steps=40"])
    fit.main([*words, f"runs_dir={tmp_path / 'unbroken'}", "trainer.max_steps=40"])
    assert_same_end(run, tmp_path / "unbroken" / "it")


def test_a_command_whose_decoding_process_is_killed_ends_with_status_1(
    packed: Path, tmp_path: Path
) -> None:
    words, run = words_for(SEARCH, packed, tmp_path), tmp_path / "it"
    with begun([*words, *LONG, "data.workers=1"], run) as started:
        os.kill(workers(started.pid)[0], signal.SIGKILL)
        _, error = started.communicate(timeout=120)
    assert started.returncode == 1
    assert "A decoding process was lost at step " in error and "DataLoader worker" in error
    assert "Traceback" not in error
    assert read_whole(run / "checkpoints" / "last.ckpt")["global_step"] >= 3


@PHASES
def test_memory_that_is_used_up_is_told_with_step_and_size(
    unbroken: Callable[[str], Path], packed: Path, tmp_path: Path, recipe: str
) -> None:
    words, run = words_for(recipe, packed, tmp_path), tmp_path / "it"
    patch = at_step(5, lambda: torch.empty(2**60))
    told = (
        r"Out of memory at step 5, with data.batch_size = 4 on 1 devices: .*can't allocate memory"
    )
    with pytest.raises(OwnError, match=told):
        fit.main(words)
    patch.undo()
    assert step_of(run) == (4 if recipe == RETRAIN else 3)
    fit.main(words)
    assert_same_end(run, unbroken(recipe))


def test_memory_that_is_used_up_in_evaluation_names_what_changes_no_result(
    packed: Path, tmp_path: Path
) -> None:
    from mdl.training.retrain import RetrainModule

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RetrainModule, "average_logits", lambda *of: torch.empty(2**60))
        told = r"step 4, evaluating 64 images of each domain .* Lower data.evaluation_batch_size"
        with pytest.raises(OwnError, match=told):
            fit.main(words_for(RETRAIN, packed, tmp_path))


def poisoned_at(step: int) -> pytest.MonkeyPatch:
    """Makes the loss of 'cars' no number, once."""
    original, happened = MultiDomainModule.losses, []

    def losses(self: MultiDomainModule, logits: Any, batch: Any) -> torch.Tensor:
        found = original(self, logits, batch)
        if self.global_step == step and not happened:
            happened.append(step)
            return found * torch.tensor([1.0, float("nan"), 1.0])
        return found

    patch = pytest.MonkeyPatch()
    patch.setattr(MultiDomainModule, "losses", losses)
    return patch


@pytest.mark.parametrize("phase", ["search", "retraining", "finalists"])
def test_a_domain_that_is_not_finite_is_named_and_the_run_goes_on_from_before(
    unbroken: Callable[[str], Path], packed: Path, tmp_path: Path, phase: str
) -> None:
    recipe = RETRAIN if phase == "retraining" else SEARCH
    words, run = words_for(recipe, packed, tmp_path), tmp_path / "it"
    if phase == "finalists":
        file = unbroken(SEARCH) / "checkpoints" / "last.ckpt"
        words += ["search.finalists=2", f"search.controllers_file={file}", "callbacks.abdp=null"]
    patch = poisoned_at(5)
    with pytest.raises(UserError, match="loss of domain 'cars' was not finite at step 5. The last"):
        fit.main(words)
    patch.undo()
    assert step_of(run) == (4 if phase == "retraining" else 3)
    assert all(value.isfinite().all() for value in weights(run).values())
    if phase != "finalists":
        fit.main(words)
        assert_same_end(run, unbroken(recipe))


def test_a_decoding_process_lost_while_it_hands_over_is_told_from_other_lost_connections() -> None:
    """Its trainer gets the system's error then, of which torch says nothing."""
    lost = "raise ConnectionResetError(104, 'Connection reset by peer')"
    for file, told in (("torch/utils/data/dataloader.py", True), ("fsspec/http.py", False)):
        with pytest.raises(ConnectionResetError) as error:
            exec(compile(lost, file, "exec"))
        assert (_lost_worker(error.value) is not None) == told
