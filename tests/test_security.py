"""Files from anywhere run no code: each holds what would make a marker if anything ran it."""

import dataclasses
import io
import json
import os
import pickle
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from mdl import compare, evaluate, fit, pack, report
from mdl.data.domains import Domain
from mdl.data.shards import ShardImages
from mdl.errors import UserError
from mdl.recipe_callbacks import build_callbacks
from mdl.recipe_files import load_recipe
from tests.data.test_verify import members, rewrite

SEARCH, RETRAIN = "recipes/mpnas_search.yaml", "recipes/mpnas_retrain.yaml"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-has-run"


class Bomb:
    """Makes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def one_sentence(refused: pytest.ExceptionInfo[UserError]) -> str:
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_the_bomb_goes_off_where_it_can(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


# data


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "own"))


NAMES = [
    "00000000.pkl", "00000000.pyd", "00000000.pth", "00000000.npy", "00000000.pickle",
    "../../escaped.png", "/tmp/mdl-escaped.png",
]  # fmt: skip


def test_members_of_a_shard_that_do_not_belong_are_told_and_a_run_never_opens_them(
    own: Path, small_run: list[str], marker: Path
) -> None:
    strange = [(name, pickle.dumps(Bomb(marker))) for name in NAMES]
    content = members(own / "birds" / "train-00000.tar")
    rewrite(own / "birds", [*content, *strange])
    fit.main([SEARCH, *small_run, f"data.root={own}"])
    with pytest.raises(UserError) as refused:
        pack.main(["verify", str(own)])
    for name in NAMES:
        assert f"holds {name!r}, which is neither an image nor a label" in str(refused.value)
    assert not marker.exists()
    assert not list(own.parent.rglob("escaped.png"))
    assert not Path("/tmp/mdl-escaped.png").exists()


def test_a_pickle_in_an_images_place_is_a_broken_image(
    own: Path, small_run: list[str], marker: Path
) -> None:
    rows = ShardImages(Domain.read(own / "birds"), "train").rows
    shard = own / "birds" / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    bomb = pickle.dumps(Bomb(marker))
    for row in rows:
        content[row["offset"] : row["offset"] + len(bomb)] = bomb
    shard.write_bytes(content)
    with pytest.raises(UserError, match="'birds' holds more broken images") as refused:
        fit.main([SEARCH, *small_run, f"data.root={own}"])
    one_sentence(refused)
    assert not marker.exists()


def test_an_index_of_pickled_objects_is_refused(
    own: Path, small_run: list[str], marker: Path
) -> None:
    folder = own / "birds"
    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(marker)] * 90, dtype=object), allow_pickle=True)
    domain = Domain.read(folder)
    split = domain.splits["train"]
    (folder / split.index).write_bytes(stream.getvalue())
    digest = sha256(stream.getvalue()).hexdigest()
    splits = domain.splits | {"train": dataclasses.replace(split, index_sha256=digest)}
    dataclasses.replace(domain, splits=splits).write()
    with pytest.raises(UserError, match="is no index of images .Object arrays") as refused:
        fit.main([SEARCH, *small_run, f"data.root={own}"])
    one_sentence(refused)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["index", "file"])
@pytest.mark.parametrize("address", ["pipe:mkdir {}", "/bin/sh", "../cars/train-00000.tar"])
def test_a_domain_that_names_a_command_or_another_folder_is_refused(
    own: Path, small_run: list[str], marker: Path, address: str, key: str
) -> None:
    file = own / "birds" / "domain.json"
    content = json.loads(file.read_text())
    split = content["splits"]["train"]
    (split if key == "index" else split["shards"][0])[key] = address.format(marker)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a plain name beside it") as refused:
        fit.main([SEARCH, *small_run, f"data.root={own}"])
    one_sentence(refused)
    assert not marker.exists()


@pytest.mark.parametrize("root", ["pipe:mkdir {}", "pipe:mkdir {}|", "simplecache::pipe:mkdir {}"])
def test_a_command_as_data_root_is_refused(small_run: list[str], marker: Path, root: str) -> None:
    with pytest.raises(UserError, match="is no address that data are read from") as refused:
        fit.main([SEARCH, *small_run, f"data.root={root.format(marker)}"])
    one_sentence(refused)
    assert not marker.exists()


# checkpoints


def test_a_checkpoint_with_a_pickled_callable_is_refused_wherever_one_is_read(
    finished_run: Path, small_run: list[str], tmp_path: Path, marker: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "runs" / "mpnas_retrain"))
    (run / "scores.json").unlink()  # as if it had not finished
    recipe = [RETRAIN, str(run / "recipe.yaml"), f"runs_dir={run.parent}"]
    fit.main([SEARCH, *small_run])
    searched = tmp_path / "runs" / "mpnas_search" / "checkpoints" / "last.ckpt"
    for file in (tmp_path / "runs").rglob("*.ckpt"):
        torch.save(torch.load(file, weights_only=True) | {"callback": Bomb(marker)}, file)
    frozen = [f"search.supernet_file={searched}", "name=frozen"]
    for read in (
        lambda: fit.main(recipe),
        lambda: evaluate.main([str(run)]),
        lambda: fit.main([SEARCH, *small_run, "trainer.max_steps=12"]),
        lambda: fit.main([SEARCH, *small_run, *frozen]),
    ):
        with pytest.raises(UserError, match="not tensors and plain values alone") as refused:
            read()
        one_sentence(refused)
    assert not marker.exists()


# recipes


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("os.mkdir", "path: {}", "expected a dotted name in mdl, callbacks, lightning"),
        ("mdlx.evil.Callback", "path: {}", "expected a dotted name in mdl, callbacks, lightning"),
        ("lightning", "path: {}", "expected a dotted name in mdl, callbacks, lightning"),
        ("mdl.whole_files.write_text", "file: {}, text: x", "is no class of callbacks"),
        ("mdl.cluster.subprocess", "args: [mkdir, {}]", "is no class of callbacks"),
        ("mdl.cluster.subprocess.run", "args: [mkdir, {}]", "cannot be found"),
        (
            "lightning.fabric.utilities.cloud_io._load",
            "path_or_url: {}.pickle, weights_only: false",
            "is no class of callbacks",
        ),
        ("lightning.Trainer", "default_root_dir: {}", "is no class of callbacks"),
    ],
)
def test_a_recipe_calls_nothing_but_classes_of_callbacks(
    small_run: list[str], tmp_path: Path, marker: Path, name: str, arguments: str, message: str
) -> None:
    Path(f"{marker}.pickle").write_bytes(pickle.dumps(Bomb(marker)))
    file = tmp_path / "foreign.yaml"
    file.write_text(f"callbacks: {{x: {{class: {name}, {arguments.format(marker)}}}}}")
    with pytest.raises(UserError, match=message) as refused:
        fit.main([SEARCH, str(file), *small_run])
    one_sentence(refused)
    assert not marker.exists()


@pytest.fixture
def package(tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's, which makes the marker when it is imported."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text("")
    (tmp_path / "theirs" / "quiet.py").write_text(
        "import lightning, os\n"
        f"os.makedirs({str(marker)!r}, exist_ok=True)\n"
        "class Quiet(lightning.Callback):\n    pass\n"
        "def function():\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "theirs"


def test_a_package_is_imported_only_where_the_command_allows_it(
    small_run: list[str], package: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [SEARCH, *small_run, "callbacks.quiet={class: theirs.quiet.Quiet}"]
    with pytest.raises(UserError, match="is allowed by the command: --allow PACKAGE") as refused:
        fit.main(words)
    one_sentence(refused)
    assert not marker.exists()
    fit.main([*words, "--allow", package])
    assert marker.exists()
    assert "--allow theirs" in capsys.readouterr().out  # the next command works as it stands
    with pytest.raises(UserError, match="is no class of callbacks"):
        recipe = load_recipe([*words, "callbacks.quiet.class=theirs.quiet.function"])
        build_callbacks(recipe, ["theirs"])
    with pytest.raises(UserError, match="--allow names no package"):
        fit.main([*words, "--allow"])


def test_no_recipe_and_no_comparison_can_allow_anything(
    small_run: list[str], package: str, marker: Path, tmp_path: Path
) -> None:
    foreign = "callbacks: {quiet: {class: theirs.quiet.Quiet}}\n"
    file = tmp_path / "foreign.yaml"
    for line in ("allow: [theirs]", "'--allow': theirs", "callbacks.allow: theirs"):
        file.write_text(f"{foreign}{line}\n")
        with pytest.raises(UserError, match="Unknown recipe key"):
            fit.main([SEARCH, str(file), *small_run])
    rows = tmp_path / "comparison.yaml"
    for words in (["--allow=theirs"], ["--allow", "theirs"]):
        settings = [word for word in small_run if not word.startswith("runs_dir=")]
        settings += [*words, "callbacks.quiet={class: theirs.quiet.Quiet}"]
        content = {
            "name": "c", "runs_dir": str(tmp_path / "runs"), "seeds": [0],
            "runs": {"s": {"settings": settings}}, "rows": {"a": {"search": "s"}},
        }  # fmt: skip
        rows.write_text(json.dumps(content))
        with pytest.raises(UserError, match="--allow") as refused:
            compare.main([str(rows)])
        one_sentence(refused)
    assert not marker.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/name:os.mkdir"])
def test_yaml_that_would_make_objects_is_refused_also_as_a_runs_own_recipe(
    finished_run: Path, small_run: list[str], tmp_path: Path, marker: Path, tag: str
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    file = run / "recipe.yaml"
    file.write_text(f"{file.read_text()}\nx: {tag.format(marker)}\n")
    with pytest.raises(UserError, match="is no YAML that can be read") as refused:
        fit.main([str(file), *small_run])
    one_sentence(refused)
    for command in (evaluate, report):
        with pytest.raises(UserError, match="cannot be read as a run's recipe") as refused:
            command.main([str(run)])
        one_sentence(refused)
    assert not marker.exists()


def test_a_runs_own_recipe_is_held_to_the_same_names(
    finished_run: Path, tmp_path: Path, package: str, marker: Path
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    file = run / "recipe.yaml"
    text = file.read_text().replace("callbacks.phase_bar.PhaseBar", "theirs.quiet.Quiet")
    assert "theirs" in text
    file.write_text(text)
    with pytest.raises(UserError, match="--allow PACKAGE") as refused:
        evaluate.main([str(run)])
    one_sentence(refused)
    report.main([str(run)])  # which makes no callbacks
    assert not marker.exists()


def test_a_callback_whose_state_no_checkpoint_can_give_back_is_refused_at_once(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints run no code when they are read, whatever a callback would put into them."""
    (tmp_path / "stateful").mkdir()
    (tmp_path / "stateful" / "__init__.py").write_text(
        "import lightning, pathlib\n"
        "class Mine(lightning.Callback):\n"
        "    def state_dict(self):\n        return {'where': pathlib.Path('a')}\n"
        "class Adds(lightning.Callback):\n"
        "    def on_save_checkpoint(self, trainer, module, checkpoint):\n"
        "        checkpoint['where'] = pathlib.Path('a')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, told in (("Mine", "The state of Mine, which"), ("Adds", r"checkpoint\['where'\]")):
        words = [f"callbacks.theirs={{class: stateful.{name}}}", f"name={name}"]
        with pytest.raises(UserError, match=f"{told}.* cannot be saved") as refused:
            fit.main([SEARCH, *small_run, *words, "--allow", "stateful"])
        one_sentence(refused)
        runs = next(word for word in small_run if word.startswith("runs_dir="))
        assert not list(Path(runs.removeprefix("runs_dir=")).glob(f"{name}/checkpoints/*"))
