import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mdl.errors import ProcessLost, UserError
from mdl.recipe import Recipe
from mdl.recipe_files import load_recipe
from mdl.run_folder import RunFolder, identity


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    return load_recipe(["recipes/mpnas_search.yaml", f"runs_dir={tmp_path}", *overrides])


def claimed(of: Recipe) -> RunFolder:
    folder = RunFolder.of(of)
    folder.claim(of, folder.state())
    return folder


def test_a_recipe_that_has_not_proved_itself_leaves_no_folder(tmp_path: Path) -> None:
    RunFolder.of(recipe(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_start_together_do_not_refuse_the_folder_that_one_of_them_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, while and after the other writes its recipe, and between any two looks at it."""
    ours = recipe(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("mdl.whole_files.os.fsync", lambda _: RunFolder.of(ours))
        RunFolder.of(ours).claim(ours, {})
    shutil.rmtree(tmp_path / ours.name)
    look = Path.is_file

    def claimed_after_a_look(file: Path) -> bool:
        there = look(file)
        if file.name == "recipe.yaml" and not there:
            RunFolder(file.parent).claim(ours, {})
        return there

    monkeypatch.setattr(Path, "is_file", claimed_after_a_look)
    assert not RunFolder.of(ours).has_begun


def test_the_name_finds_the_folder_again(tmp_path: Path) -> None:
    first = claimed(recipe(tmp_path))
    assert first.path == tmp_path / "mpnas_search"
    assert claimed(recipe(tmp_path)) == first
    assert first.recipe() == recipe(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        "trainer.devices=2",
        "trainer.num_nodes=2",
        "data.workers=7",
        "wandb.mode=offline",
        "trainer.max_steps=9999",
        "trainer.threads=1",
    ],
)
def test_where_and_how_fast_a_run_goes_is_no_change(tmp_path: Path, change: str) -> None:
    claimed(recipe(tmp_path))
    claimed(recipe(tmp_path, change))
    assert identity(recipe(tmp_path)) == identity(recipe(tmp_path, change))


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = claimed(recipe(tmp_path))
    RunFolder.of(recipe(tmp_path, "seed=5"))  # without a checkpoint there is nothing to lose
    (folder.checkpoints_dir / "last.ckpt").write_bytes(b"")
    RunFolder.of(recipe(tmp_path))
    with pytest.raises(UserError, match=r"seed: 0 -> 5.*name=mpnas_search_2"):
        RunFolder.of(recipe(tmp_path, "seed=5"))
    with pytest.raises(UserError, match=r"callbacks.abdp.bound: None -> 2"):
        RunFolder.of(recipe(tmp_path, "callbacks.abdp.bound=2"))


def test_what_has_no_part_in_a_phase_is_no_change_and_stays_as_it_began(tmp_path: Path) -> None:
    words = ["recipes/mpnas_retrain.yaml", f"runs_dir={tmp_path}", "architecture_file=a.json"]
    begun, now = load_recipe(words), load_recipe([*words, "search.sharing=3", "data.workers=7"])
    folder = RunFolder(tmp_path / begun.name)
    assert folder.settled(now) == now
    folder.claim(begun, {})
    folder.scores_file.write_text("{}")
    settled = RunFolder.of(now).settled(now)
    assert identity(settled) == identity(begun) != identity(now)
    assert settled.search == begun.search and settled.data.workers == 7
    # the averaging of weights is a last round's too
    searching = claimed(recipe(tmp_path))
    searching.metrics_file.write_text("{}")
    RunFolder.of(recipe(tmp_path, "retrain.draw=4"))
    with pytest.raises(UserError, match=r"retrain.ema_decay: 0.99 -> 0.5"):
        RunFolder.of(recipe(tmp_path, "retrain.ema_decay=0.5"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mpnas_search").mkdir()
    (tmp_path / "mpnas_search" / "thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match="not the folder of a run"):
        claimed(recipe(tmp_path))
    with pytest.raises(UserError, match="not the folder of a run"):
        RunFolder.find(tmp_path)


@pytest.mark.parametrize("content", [b"", b"phase: [", b"- a\n- b\n", b"name: caf\xe9"])
def test_a_damaged_recipe_is_told(tmp_path: Path, content: bytes) -> None:
    folder = claimed(recipe(tmp_path))
    folder.recipe_file.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a run's recipe: .* Restore it"):
        folder.recipe()


@pytest.mark.parametrize("content", [b"", b'{"step": 8', b"[]", b"caf\xe9"])
def test_damaged_scores_are_told(tmp_path: Path, content: bytes) -> None:
    folder = claimed(recipe(tmp_path))
    folder.scores_file.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as a run's scores: .* Restore it, or"):
        folder.scores()


@pytest.mark.parametrize(
    "left", ["checkpoints/last.ckpt", "metrics.jsonl", "architecture.json", "scores.json"]
)
def test_whatever_a_run_has_left_keeps_its_name(tmp_path: Path, left: str) -> None:
    """Checkpoints may be gone from a finished run: its products are not written over."""
    folder = claimed(recipe(tmp_path))
    (folder.path / left).write_text("{}")
    with pytest.raises(UserError, match="belongs to a run of another recipe"):
        RunFolder.of(recipe(tmp_path, "seed=5"))


@contextmanager
def held_by_another(folder: RunFolder) -> Iterator[int]:
    """Another process holds the folder; gives its id."""
    code = (
        "import sys; from pathlib import Path; from mdl.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).held(restarted=False):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        yield other.pid
        other.kill()


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path: Path) -> None:
    folder = claimed(recipe(tmp_path))
    with held_by_another(folder) as other:
        told = f"is being trained by process {other} on .*name=..."
        with pytest.raises(UserError, match=told), folder.held(restarted=False):
            pass
        # what SLURM starts again may come before a lost node's lock is gone
        with pytest.raises(ProcessLost, match=told), folder.held(restarted=True):
            pass
    with folder.held(restarted=False):
        pass
    assert RunFolder.of(recipe(tmp_path, "seed=5")) == folder  # a lock is nothing to lose


def test_a_folder_of_which_only_a_lock_is_left_is_free(tmp_path: Path) -> None:
    """As `rm -r runs/NAME/*` leaves it."""
    (tmp_path / "mpnas_search").mkdir()
    with RunFolder(tmp_path / "mpnas_search").held(restarted=False):
        pass
    assert claimed(recipe(tmp_path)).recipe() == recipe(tmp_path)


@pytest.mark.parametrize("left", ["recipe.yaml", "metrics.jsonl", "checkpoints/last.ckpt"])
def test_what_another_process_left_since_one_looked_is_not_written_over(
    tmp_path: Path, left: str
) -> None:
    folder = claimed(recipe(tmp_path))
    seen = folder.state()
    folder.claim(recipe(tmp_path), seen)
    (folder.path / left).write_text("more than before")
    with pytest.raises(UserError, match="Another process has worked in .* goes on from what it"):
        folder.claim(recipe(tmp_path), seen)
    assert (folder.path / left).read_text() == "more than before"
