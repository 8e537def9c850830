"""Searches and retrainings, whole, on real files."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mdl import evaluate, fit, pack, report
from mdl.assembly import build_search, find_domains
from mdl.data.domains import Domain
from mdl.data.packing import pack_domain
from mdl.data.shards import ShardImages
from mdl.data.source import DomainSource
from mdl.errors import UserError
from mdl.recipe_files import dump_recipe, load_recipe
from mdl.results.run import Run
from mdl.run_folder import RunFolder
from mdl.space.architecture import Architecture
from mdl.training.base import MultiDomainModule
from mdl.training.search import SearchModule
from tests.conftest import SIZES, coloured
from tests.dying import dying_at
from tests.test_run_folder import held_by_another

SEARCH, RETRAIN = "recipes/mpnas_search.yaml", "recipes/mpnas_retrain.yaml"


def run_of(small_run: list[str], name: str) -> Path:
    (runs,) = (word.removeprefix("runs_dir=") for word in small_run if "runs_dir" in word)
    return Path(runs) / name


@pytest.fixture
def searched(small_run: list[str]) -> Path:
    fit.main([SEARCH, *small_run])
    return run_of(small_run, "mpnas_search")


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / name, weights_only=True)[
        "state_dict"
    ]
    return state


def assert_same_run(one: Path, other: Path) -> None:
    """What the last checkpoint holds, to the bit, products, and all records but those of time."""
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)
    ]
    for state in states:
        # Lightning's counts of batches fetched and of streams ended; the name
        del state["loops"], state["epoch"], state["run"]
    assert_same(*states)

    def timeless(run: Path) -> list[dict[str, float]]:
        return [line for line in metrics(run) if not any("throughput" in key for key in line)]

    assert timeless(one) == timeless(other)
    for product in ("architecture.json", "scores.json"):
        made = [run / product for run in (one, other) if (run / product).is_file()]
        if made:
            assert_same(*[_without_names(json.loads(file.read_text())) for file in made])


def _without_names(product: dict[str, Any]) -> dict[str, Any]:
    """What was made, not by whom."""
    return {key: value for key, value in product.items() if key not in ("source", "run")}


def assert_same(one: Any, other: Any, at: str = "") -> None:
    """Nested values are equal, tensors to the bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            assert_same(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), at
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{at}/{place}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    else:
        assert one == other, at


def test_a_search_ends_in_an_architecture_and_a_retraining_in_scores(
    small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main([SEARCH, *small_run])
    searched = run_of(small_run, "mpnas_search")
    out = capsys.readouterr().out
    (following,) = (line for line in out.splitlines() if line.startswith("Next: "))
    architecture = Architecture.read(searched / "architecture.json")
    assert architecture.domains == ("birds", "cars", "types")
    assert architecture.source["step"] == 8
    quantities = {key.rsplit("/", 1)[0] for line in metrics(searched) for key in line}
    assert {"train/loss", "train/domain_weight", "search/entropy", "search/reward"} <= quantities

    # the command that the search names runs as it stands
    fit.main([*shlex.split(following)[4:], "trainer.max_steps=8"])
    assert "Next: python -m mdl.report" in capsys.readouterr().out
    retrained = run_of(small_run, "mpnas_retrain")
    scores = json.loads((retrained / "scores.json").read_text())
    assert set(scores["splits"]) == {"val", "test"}
    assert set(scores["splits"]["test"]["accuracy"]) == {"birds", "cars", "types"}
    recorded = {key for line in metrics(retrained) for key in line}
    assert {"val/accuracy/birds", "val/accuracy/mean", "test/loss/types"} <= recorded
    for name in ("best.ckpt", "last.ckpt"):
        assert "network.nodes.stem.conv.weight" in weights(retrained, name)
    assert not list(retrained.rglob("*.partial"))


def test_evaluating_again_gives_the_same_scores(
    searched: Path, small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main([RETRAIN, *small_run])
    run = run_of(small_run, "mpnas_retrain")
    before = json.loads((run / "scores.json").read_text())
    evaluate.main([str(run)])
    assert json.loads((run / "scores.json").read_text()) == before
    evaluate.main([str(run), "--split", "train", "--checkpoint", "last"])
    after = json.loads((run / "scores.json").read_text())
    assert after["splits"] == before["splits"]  # of the checkpoint that the run is judged by
    other = after["other_checkpoints"]["last.ckpt"]["train"]
    assert other["images"] == {"birds": 90, "cars": 41, "types": 6}
    with pytest.raises(UserError, match="is the run of a search; expected a retrained network"):
        evaluate.main([str(searched)])
    with pytest.raises(UserError, match="answers the test images; --split val was given beside"):
        evaluate.main([str(run), "--submission", "results.zip", "--split", "val"])


def test_a_run_that_saves_checkpoints_of_its_own_is_evaluated(
    searched: Path, small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    saves = (
        "callbacks.saves={class: lightning.pytorch.callbacks.ModelCheckpoint, every_n_epochs: 1}"
    )
    fit.main([RETRAIN, *small_run, saves])
    run = run_of(small_run, "mpnas_retrain")
    before = (run / "scores.json").read_text()
    evaluate.main([str(run)])
    assert (run / "scores.json").read_text() == before
    assert "evaluated on a CPU" not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_what_was_trained_on_a_gpu_is_evaluated_where_there_is_none(
    searched: Path, small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main([RETRAIN, *small_run])
    run = run_of(small_run, "mpnas_retrain")
    before = json.loads((run / "scores.json").read_text())
    recipe = run / "recipe.yaml"
    on_a_gpu = recipe.read_text().replace("accelerator: cpu", "accelerator: gpu")
    assert "accelerator: gpu" in on_a_gpu
    recipe.write_text(on_a_gpu)
    evaluate.main([str(run)])
    assert "There is no gpu here: evaluated on a CPU" in capsys.readouterr().out
    assert json.loads((run / "scores.json").read_text()) == before


@pytest.mark.parametrize(
    ("recipe", "stop", "change"),
    [
        *((recipe, stop, []) for recipe in (SEARCH, RETRAIN) for stop in (3, 4, 6)),
        (SEARCH, 6, ["retrain.draw=1"]),
        (RETRAIN, 6, ["search.start=expansions"]),
    ],
)
def test_a_run_that_stopped_goes_on_as_if_it_had_not(
    searched: Path,
    small_run: list[str],
    tmp_path: Path,
    recipe: str,
    stop: int,
    change: list[str],
) -> None:
    """Stopped between checkpoints (3), at a validation (4), at a checkpoint (6).

    change: of what only the other phase uses, which may change within a run.
    """
    given = [f"architecture_file={searched / 'architecture.json'}"] if recipe == RETRAIN else []
    arguments = [recipe, *small_run, *given, "name=it"]
    fit.main([*arguments, f"runs_dir={tmp_path / 'unbroken'}"])
    with dying_at(stop):
        fit.main([*arguments, f"runs_dir={tmp_path / 'broken'}"])
    fit.main([*arguments, f"runs_dir={tmp_path / 'broken'}", *change])
    assert_same_run(tmp_path / "unbroken" / "it", tmp_path / "broken" / "it")


def test_a_finished_run_says_so_and_is_left_alone(
    searched: Path, small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in searched.glob("checkpoints/*")}
    fit.main([SEARCH, *small_run])
    assert "is finished: 8 steps" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in searched.glob("checkpoints/*")} == before


def test_more_steps_go_on_from_the_last_checkpoint(searched: Path, small_run: list[str]) -> None:
    fit.main([SEARCH, *small_run, "trainer.max_steps=12"])
    assert [line["step"] for line in metrics(searched) if "search/entropy/birds" in line] == [
        2, 4, 6, 8, 10, 12,
    ]  # fmt: skip


def test_more_steps_leave_the_warm_up_where_it_was_and_follow_the_longer_schedule(
    searched: Path, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    original = SearchModule.training_step

    def watching(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        rates.append((self.delay, self.optimizers().param_groups[0]["lr"]))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SearchModule, "training_step", watching)
    fit.main([SEARCH, *small_run, "trainer.max_steps=80"])
    assert {delay for delay, _ in rates} == {2}  # a quarter of the eight steps it began with
    first, second = rates[0][1], rates[1][1]
    assert first > second > 0.98 * first  # no step at the old schedule's end, no jump


def test_an_evaluation_does_not_make_an_unfinished_run_look_finished(
    searched: Path, small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with dying_at(6):
        fit.main([RETRAIN, *small_run])
    run = run_of(small_run, "mpnas_retrain")
    evaluate.main([str(run)])
    capsys.readouterr()
    fit.main([RETRAIN, *small_run])
    assert "is finished" not in capsys.readouterr().out
    assert json.loads((run / "scores.json").read_text())["step"] == 8


def test_the_next_command_keeps_what_was_typed(
    small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["network.nodes=private", "data.domains=[birds, cars]", "search.sharing=0", "name=two"]
    fit.main([SEARCH, *small_run, *typed])
    out = capsys.readouterr().out
    assert "this bundle, nothing shared" in out
    (following,) = (line for line in out.splitlines() if line.startswith("Next: "))
    words = shlex.split(following)[4:]
    recipe = load_recipe([*words, "trainer.max_steps=8"])
    assert (recipe.name, recipe.network.nodes) == ("two_retrain", "private")
    assert recipe.data.domains == ["birds", "cars"]
    fit.main([*words, "trainer.max_steps=8"])
    assert (run_of(small_run, "two_retrain") / "scores.json").is_file()


def test_a_first_recipe_of_ones_own_gives_the_next_command_its_values(
    small_run: list[str], tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    OmegaConf.save(OmegaConf.from_dotlist(small_run), own)
    words = [SEARCH, str(own), "name=own"]
    merged = tmp_path / "merged.yaml"
    merged.write_text(dump_recipe(load_recipe(words)))
    searched = load_recipe([str(merged)])
    retrain = load_recipe([*fit.retrain_words(searched, [str(merged)]), "trainer.max_steps=8"])
    assert retrain.phase == "retrain"
    assert (retrain.data, retrain.space) == (searched.data, searched.space)
    assert retrain.architecture_file == f"{searched.runs_dir}/own/architecture.json"


def test_the_next_command_leaves_out_what_is_of_a_search_alone(
    small_run: list[str], tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("search: {beta1: 0.3}\ntrainer: {precision: bf16-mixed, max_steps: 7}\n")
    words = [SEARCH, "recipes/frozen_search.yaml", str(own), "callbacks.trace.interval=2"]
    words += ["search.supernet_file=a.ckpt", "callbacks.abdp.bound=3", "trainer.threads=1"]
    retrain = load_recipe(fit.retrain_words(load_recipe(words), words))
    assert retrain.trainer.max_steps == 7  # an overlay that says more than how to search is kept
    assert retrain.trainer.precision == "bf16-mixed"
    assert retrain.callbacks["abdp"]["bound"] == 3 and "trace" not in retrain.callbacks
    words.remove(str(own))
    retrain = load_recipe(fit.retrain_words(load_recipe(words), words))
    assert retrain.trainer.max_steps == load_recipe([RETRAIN]).trainer.max_steps


def test_a_search_is_finished_though_its_command_makes_no_retraining(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise UserError("this does not go with that")

    monkeypatch.setattr(fit, "retrain_words", refused)
    fit.main([SEARCH, *small_run])
    assert "something is missing: this does not go with that" in capsys.readouterr().out


def test_a_finished_run_says_so_when_its_data_have_gone(
    packed: Path, small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    fit.main([SEARCH, *small_run, f"data.root={data}"])
    shutil.rmtree(data)
    capsys.readouterr()
    fit.main([SEARCH, *small_run, f"data.root={data}"])
    assert "is finished: 8 steps" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_domains(
    packed: Path, small_run: list[str], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    shutil.move(data / "types", tmp_path / "types")
    fit.main([SEARCH, *small_run, f"data.root={data}"])
    shutil.move(tmp_path / "types", data / "types")
    with pytest.raises(UserError, match="on the domains birds, cars; the data are birds, cars, ty"):
        fit.main([SEARCH, *small_run, f"data.root={data}", "trainer.max_steps=12"])


def test_weights_do_not_meet_other_classes_and_runs_no_other_images(
    packed: Path, small_run: list[str], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(packed, tmp_path / "data"))
    at = f"data.root={data}"
    fit.main([SEARCH, *small_run, at])
    fit.main([RETRAIN, *small_run, at])
    file = data / "birds" / "domain.json"
    content = file.read_text()
    file.write_text(content.replace('"class0", "class1"', '"class1", "class0"'))
    with pytest.raises(UserError, match="was trained on other classes of 'birds'"):
        evaluate.main([str(run_of(small_run, "mpnas_retrain"))])
    file.write_text(content.replace('"flip": true', '"flip": false'))
    with pytest.raises(
        UserError, match=r"was trained on other flips, fit or colours .* of 'birds'"
    ):
        fit.main([SEARCH, *small_run, at, "trainer.max_steps=12"])
    file.write_text(content)
    evaluate.main([str(run_of(small_run, "mpnas_retrain"))])
    shutil.rmtree(data / "birds")
    images = {split: coloured(3, 50) for split in ("train", "val", "test")}
    source = DomainSource("birds", [f"class{i}" for i in range(3)], images, flip=True)
    pack_domain(source, data, size=72)
    with pytest.raises(UserError, match="was trained on other images of 'birds'"):
        fit.main([SEARCH, *small_run, at, "trainer.max_steps=12"])


@pytest.mark.parametrize("override", ["search.controllers=common", "network.nodes=private"])
def test_the_sharing_bonus_acts_only_where_nodes_can_be_shared(
    domains: dict[str, Domain], small_run: list[str], override: str
) -> None:
    plain = load_recipe([SEARCH, *small_run, "search.sharing=0.5"])
    assert build_search(plain, domains).sharing == 0.5
    other = load_recipe([SEARCH, *small_run, "search.sharing=0.5", override])
    assert build_search(other, domains).sharing == 0


def test_a_recipe_that_cannot_start_leaves_no_run_folder(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for override, message in (
        ("trainer.accelerator=gppu", "Lightning cannot start with the recipe's trainer.accel"),
        ("trainer.strategy=dpp", "Lightning cannot start"),
    ):
        with pytest.raises(UserError, match=message):
            fit.main([SEARCH, *small_run, override])
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "8")
        with pytest.raises(UserError, match=r"started 8 processes .* make 1. Set trainer.devices"):
            fit.main([SEARCH, *small_run])
    assert not run_of(small_run, "mpnas_search").exists()


def test_a_start_that_came_to_nothing_does_not_keep_the_name(
    searched: Path, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint was written: the same name may be used with another recipe."""

    def dying(self, losses):  # type: ignore[no-untyped-def]
        raise RuntimeError("the machine died")

    with monkeypatch.context() as patch:
        patch.setattr(MultiDomainModule, "weighted_sum", dying)
        with pytest.raises(RuntimeError):
            fit.main([RETRAIN, *small_run, "seed=7", "retrain.paths=common"])
    fit.main([RETRAIN, *small_run])
    run = run_of(small_run, "mpnas_retrain")
    found = Architecture.read(searched / "architecture.json")
    assert Architecture.read(run / "architecture.json").paths == found.paths


def test_ctrl_c_is_told_apart_from_an_error(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self, losses):  # type: ignore[no-untyped-def]
        raise KeyboardInterrupt

    monkeypatch.setattr(MultiDomainModule, "weighted_sum", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit.main([SEARCH, *small_run])


def test_a_search_on_one_device_takes_other_paths_at_each_step_whatever_the_strategy(
    small_run: list[str],
) -> None:
    fit.main([SEARCH, *small_run])
    fit.main([SEARCH, *small_run, "trainer.strategy=ddp", "name=ddp"])
    ours, theirs = (weights(run_of(small_run, name)) for name in ("mpnas_search", "ddp"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_space_of_one_block_can_be_searched(small_run: list[str]) -> None:
    one = ["space.kernels=[3]", "space.squeeze_excite=[false]"]
    stage = "space.stages=[{width: 8, depth: 2, stride: 2, activation: relu, skippable: 0}]"
    fit.main([SEARCH, *small_run, *one, stage, "callbacks.trace.interval=2"])
    assert (run_of(small_run, "mpnas_search") / "architecture.json").is_file()


def test_without_callbacks_a_run_still_writes_its_products(
    small_run: list[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(Path(SEARCH).read_text().split("callbacks:")[0])
    fit.main([str(recipe), *small_run])
    run = run_of(small_run, "mpnas_search")
    assert (run / "architecture.json").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert metrics(run)


def test_own_folders_are_searched_by_two_commands(
    small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One domain, sizes that differ, no test split."""
    from tests.data.test_packing import write_folders

    pack.main(["folders", str(write_folders(tmp_path / "images")), str(tmp_path / "out")])
    assert f"data.root={tmp_path / 'out'} name=out" in capsys.readouterr().out
    own = [f"data.root={tmp_path / 'out'}", "name=own", "data.load_size=14"]
    fit.main([SEARCH, *small_run, *own])
    fit.main([
        RETRAIN, *small_run, *own, "name=own_retrain",
        f"architecture_file={run_of(small_run, 'own') / 'architecture.json'}",
    ])  # fmt: skip
    scores = json.loads((run_of(small_run, "own_retrain") / "scores.json").read_text())
    assert set(scores["splits"]) == {"val"}


def test_shared_batch_norm_and_private_nodes_go_the_same_way(
    small_run: list[str], tmp_path: Path
) -> None:
    changes = ["network.nodes=private", "network.batch_norm=shared", "name=bundle"]
    fit.main([SEARCH, *small_run, *changes])
    architecture_file = run_of(small_run, "bundle") / "architecture.json"
    fit.main([RETRAIN, *small_run, *changes, "name=b2", f"architecture_file={architecture_file}"])
    assert any("@birds" in name for name in weights(run_of(small_run, "b2")))


def test_mixed_precision_goes_the_same_way(searched: Path, small_run: list[str]) -> None:
    fit.main([RETRAIN, *small_run, "trainer.precision=bf16-mixed"])
    kept = weights(run_of(small_run, "mpnas_retrain"))
    assert kept["network.nodes.stem.conv.weight"].dtype == torch.float32


def test_one_controller_for_all_ends_in_one_path(small_run: list[str]) -> None:
    fit.main([SEARCH, *small_run, "search.controllers=common", "name=common"])
    architecture = Architecture.read(run_of(small_run, "common") / "architecture.json")
    assert len(set(architecture.paths.values())) == 1


def test_metrics_file_and_offline_wandb_hold_the_same_keys(
    small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.results.offline_wandb import read_offline_rows

    monkeypatch.delenv("WANDB_MODE")
    fit.main([SEARCH, *small_run, "wandb.mode=offline"])
    run = run_of(small_run, "mpnas_search")
    names = {"birds", "cars", "types", "mean"}
    in_file = {key for line in metrics(run) for key in line if key.split("/")[-1] in names}
    in_wandb = {key for row in read_offline_rows(run).values() for key in row}
    assert in_file == {key for key in in_wandb if key.split("/")[-1] in names}
    assert {"train/loss/birds", "search/entropy/mean"} <= in_file
    assert any(key.startswith("architecture/path_map") for key in in_wandb)


def test_domains_with_sizes_of_their_own_are_searched_and_retrained(
    small_run: list[str],
) -> None:
    changes = [
        "data.sampling=proportional", "data.batch_size=8",
        "data.per_domain.cars={image_size: 16}", "data.per_domain.types={batch_size: 6}",
    ]  # fmt: skip
    fit.main([SEARCH, *small_run, *changes])
    fit.main([RETRAIN, *small_run, *changes])
    run = run_of(small_run, "mpnas_retrain")
    source = Architecture.read(run / "architecture.json").source
    assert source["image_size"] == {"birds": 12, "cars": 16, "types": 12}
    report.main([str(run)])
    assert "image size | 12 px, cars 16 px" in (run / "report.md").read_text()


def test_a_recipe_for_a_domain_that_is_not_there_is_refused(small_run: list[str]) -> None:
    with pytest.raises(UserError, match=r"data.per_domain names 'car', .* did you mean 'cars'\?"):
        fit.main([SEARCH, *small_run, "data.per_domain.car={image_size: 16}"])
    with pytest.raises(UserError, match="per_domain.cars.batch_size is 1; expected 2 or more"):
        fit.main([SEARCH, *small_run, "data.per_domain.cars={batch_size: 1}"])


def process(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mdl.fit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"WANDB_MODE": "disabled"},
    )


def test_bad_input_ends_in_one_sentence_and_status_2(small_run: list[str]) -> None:
    for bad, words in (
        ("sead=1", "Unknown recipe key 'sead'"),
        ("data.root=nowhere", "No shards at data.root = nowhere"),
    ):
        started = process([SEARCH, *small_run, bad])
        _, error = started.communicate(timeout=120)
        assert started.returncode == 2
        assert f"error: {words}" in error or words in error
        assert "Traceback" not in error


def test_a_killed_process_goes_on_to_the_same_end(small_run: list[str], tmp_path: Path) -> None:
    runs = [f"runs_dir={tmp_path / 'k'}", "name=it", "trainer.max_steps=40"]
    started = process([SEARCH, *small_run, *runs])
    last = tmp_path / "k" / "it" / "checkpoints" / "last.ckpt"
    for _ in range(600):
        if last.is_file() or started.poll() is not None:
            break
        time.sleep(0.1)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    fit.main([SEARCH, *small_run, *runs])
    fit.main([SEARCH, *small_run, f"runs_dir={tmp_path / 'u'}", *runs[1:]])
    assert_same_run(tmp_path / "k" / "it", tmp_path / "u" / "it")


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_early_stopping_ends_a_run_that_is_then_finished(
    small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it dies between its last step and its scores, and its count goes on."""
    stop = "{class: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss/mean, patience: 2"
    words = [RETRAIN, *small_run, "retrain.paths=common", "trainer.max_steps=40"]
    words.append(f"callbacks.stop={stop}, min_delta: 9.0}}")
    fit.main([*words, "name=unbroken"])
    unbroken = run_of(small_run, "unbroken")
    assert json.loads((unbroken / "scores.json").read_text())["step"] == 12
    assert Run.read(unbroken, "stopped").is_finished
    with dying_at(9):
        fit.main([*words, "name=broken"])
    with dying_at(12, "on_test_start"):
        fit.main([*words, "name=broken"])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "write_scores", interrupted)
        fit.main([*words, "name=broken"])
    fit.main([*words, "name=broken"])
    assert_same_run(run_of(small_run, "broken"), unbroken)
    capsys.readouterr()
    fit.main([*words, "name=broken"])
    assert "is finished: 12 steps" in capsys.readouterr().out


def test_a_search_that_a_callback_stops_is_finished_then(
    small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [SEARCH, *small_run, "trainer.max_steps=100000", "name=stopped"]
    words.append(
        "callbacks.clock={class: lightning.pytorch.callbacks.Timer, duration: '00:00:00:01'}"
    )
    fit.main(words)
    step = Architecture.read(run_of(small_run, "stopped") / "architecture.json").source["step"]
    assert 0 < step < 100000
    capsys.readouterr()
    fit.main(words)
    assert f"is finished: {step} steps" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused(searched: Path, small_run: list[str]) -> None:
    other = run_of(small_run, "other")
    fit.main([SEARCH, *small_run, "name=other", "seed=4"])
    shutil.copy(other / "checkpoints" / "last.ckpt", searched / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        fit.main([SEARCH, *small_run, "trainer.max_steps=12"])


def test_an_architecture_of_another_space_or_other_domains_is_refused(
    searched: Path, small_run: list[str]
) -> None:
    with pytest.raises(UserError, match=r"another space: its space.head_width is 16.* 20"):
        fit.main([RETRAIN, *small_run, "space.head_width=20"])
    with pytest.raises(UserError, match="a path for domain 'cars', which the data lack"):
        fit.main([RETRAIN, *small_run, "data.domains=[birds, types]"])
    with pytest.raises(UserError, match="No architecture file at"):
        fit.main([RETRAIN, *small_run, "architecture_file=none.json"])
    with pytest.raises(UserError, match="names no architecture_file"):
        fit.main([RETRAIN, *small_run, "architecture_file=null"])
    assert not run_of(small_run, "mpnas_retrain").exists()


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(
    searched: Path, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MultiDomainModule.losses

    def poisoned(self, logits, batch):  # type: ignore[no-untyped-def]
        losses = original(self, logits, batch)
        return losses * torch.tensor([1.0, float("nan"), 1.0]) if self.global_step == 9 else losses

    monkeypatch.setattr(MultiDomainModule, "losses", poisoned)
    with pytest.raises(UserError, match="loss of domain 'cars' was not finite at step 9"):
        fit.main([SEARCH, *small_run, "trainer.max_steps=30"])
    assert all(value.isfinite().all() for value in weights(searched).values())
    last = torch.load(searched / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 9  # saved before the step that broke


def test_gradients_that_are_not_finite_end_the_run_and_keep_the_last_checkpoint(
    searched: Path, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SearchModule.manual_backward

    def poisoned(self, loss):  # type: ignore[no-untyped-def]
        original(self, loss)
        if self.global_step == 9:
            self.network.nodes["stem"].conv.weight.grad[0] = float("inf")

    monkeypatch.setattr(SearchModule, "manual_backward", poisoned)
    with pytest.raises(UserError, match="The norm of the gradients was not finite at step 9"):
        fit.main([SEARCH, *small_run, "trainer.max_steps=30"])
    assert all(value.isfinite().all() for value in weights(searched).values())


def damage(root: Path, domain: str, count: int) -> None:
    """Overwrites `count` training images in the shard."""
    images = ShardImages(Domain.read(root / domain), "train")
    shard = root / domain / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    for row in images.rows[:count]:
        content[row["offset"] : row["offset"] + 20] = bytes(20)
    shard.write_bytes(content)


def test_broken_images_are_skipped_up_to_the_limit_then_refused(
    packed: Path, small_run: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Path(shutil.copytree(packed, tmp_path / "own"))
    damage(own, "types", 2)
    arguments = [SEARCH, *small_run, f"data.root={own}"]
    fit.main([*arguments, "data.broken_images_limit=2"])
    assert "broken image" in caplog.text
    with pytest.raises(UserError, match=r"'types' holds more broken images .* = 1: 2 found"):
        fit.main([*arguments, "data.broken_images_limit=1", "name=strict"])


def test_a_shard_cut_short_is_refused_beyond_the_limit_at_the_start(
    packed: Path, small_run: list[str], tmp_path: Path
) -> None:
    own = Path(shutil.copytree(packed, tmp_path / "own"))
    shard = own / "birds" / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:30000])
    with pytest.raises(UserError, match=r"'birds' holds more broken images .*train-00000.tar"):
        fit.main([SEARCH, *small_run, f"data.root={own}"])


def test_sizes_that_do_not_go_together_are_refused(small_run: list[str]) -> None:
    with pytest.raises(UserError, match="cannot be cut out of 8 px. Raise data.load_size"):
        fit.main([SEARCH, *small_run, "data.load_size=8"])


def test_print_recipe_shows_the_resolved_recipe(
    small_run: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main([RETRAIN, *small_run, "--print-recipe"])
    out = capsys.readouterr().out
    assert f"architecture_file: {run_of(small_run, 'mpnas_search')}/architecture.json" in out
    assert not run_of(small_run, "mpnas_retrain").exists()


def test_the_largest_domain_is_the_one_with_most_training_images(packed: Path) -> None:
    recipe = load_recipe([SEARCH, f"data.root={packed}", "data.domains=largest"])
    (name,) = find_domains(recipe)
    assert SIZES[name][1] == max(count for _, count in SIZES.values())


@pytest.mark.parametrize("change", ["seed=5", "trainer.max_steps=99"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_second_start_that_is_refused_changes_nothing_of_the_run(
    small_run: list[str], change: str, begun: bool
) -> None:
    """Before its first record and later: its recipe stays what it is trained by."""
    recipe = load_recipe([SEARCH, *small_run])
    folder = RunFolder.of(recipe)
    folder.claim(recipe, {})
    if begun:
        folder.metrics_file.write_text('{"step": 1}\n')
    before = folder.recipe_file.read_bytes()
    told = "belongs to a run of another" if begun and change == "seed=5" else "is being trained by"
    with held_by_another(folder), pytest.raises(UserError, match=told):
        fit.main([SEARCH, *small_run, change])
    assert folder.recipe_file.read_bytes() == before


def test_a_run_that_was_moved_goes_on_where_it_lies(searched: Path, tmp_path: Path) -> None:
    moved = tmp_path / "the archive" / searched.name
    moved.parent.mkdir()
    searched.rename(moved)
    command = shlex.split(RunFolder(moved).go_on_command())
    assert command[:3] == ["python", "-m", "mdl.fit"]
    fit.main([*command[3:], "trainer.max_steps=10"])
    assert not searched.exists()
    assert RunFolder(moved).finished_steps("search") == 10
