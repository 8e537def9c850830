"""What searched paths are compared with: retrainings of other paths by the same command."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mdl import evaluate, fit, report
from mdl.architectures import choose_architecture
from mdl.assembly import build_retrain, build_space, count_classes
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.parameters import ParameterTable
from mdl.recipe_files import load_recipe
from mdl.space.architecture import Architecture
from mdl.trained import Trained
from tests.dying import dying_at
from tests.networks.counted import count_parameters
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, run_of, weights

WIDTHS = [
    "space.stem_width=32",
    "space.stages=[{width: 96, depth: 2, stride: 2, activation: relu}]",
    "space.head_width=64",
]


@pytest.fixture
def retrain(small_run: list[str], domains: dict[str, Domain], tmp_path: Path) -> list[str]:
    """The words of a retraining, of paths that a search might have found."""
    words = [RETRAIN, *small_run, *WIDTHS]
    space, generator = build_space(load_recipe(words).space), random.Random(0)
    paths = {domain: space.random_path(generator) for domain in domains}
    Architecture(space, paths).write(tmp_path / "searched.json")
    return [*words, f"architecture_file={tmp_path / 'searched.json'}"]


@pytest.fixture
def backbone(retrain: list[str]) -> Path:
    """The run of one domain on the common path of the reference block."""
    fit.main([*retrain, "data.domains=[birds]", "retrain.paths=common", "name=backbone"])
    return run_of(retrain, "backbone")


def of_backbone(run: Path) -> list[str]:
    return ["retrain.paths=backbone", f"retrain.backbone_file={run / 'checkpoints/best.ckpt'}"]


def parameters(words: list[str], domains: dict[str, Domain]) -> int:
    """Of the network that is trained, counted by building it."""
    recipe = load_recipe(words)
    module = build_retrain(recipe, domains, choose_architecture(recipe, domains))
    return count_parameters(module.network).total


def test_common_is_the_path_of_the_reference_block_or_of_a_file(
    retrain: list[str], domains: dict[str, Domain], tmp_path: Path
) -> None:
    chosen = choose_architecture(load_recipe([*retrain, "retrain.paths=common"]), domains)
    assert set(chosen.paths.values()) == {chosen.space.uniform_path(chosen.space.reference_block)}
    path = chosen.space.random_path(random.Random(7))
    file = tmp_path / "one.json"
    Architecture(chosen.space, {"another_domain": path}).write(file)
    words = [*retrain, "retrain.paths=common", f"retrain.common_file={file}"]
    assert set(choose_architecture(load_recipe(words), domains).paths.values()) == {path}


def test_random_paths_weigh_what_the_searched_ones_do_and_differ_by_seed_and_draw(
    retrain: list[str], domains: dict[str, Domain]
) -> None:
    drawn, wanted = [], choose_architecture(load_recipe(retrain), domains)
    table = ParameterTable(wanted.space, count_classes(domains), "per_domain")
    for which in (["seed=3"], ["seed=3", "retrain.draw=1"], ["seed=4"]):
        recipe = load_recipe([*retrain, "retrain.paths=random", *which])
        drawn.append(choose_architecture(recipe, domains))
        totals = [table.count(of.paths).total for of in (drawn[-1], wanted)]
        assert totals[0] == pytest.approx(totals[1], rel=0.01)
    assert len({tuple(of.paths.values()) for of in drawn}) == 3
    assert drawn[1].source["draw"] == 1


@pytest.mark.parametrize("nodes", ["shared", "private"])
@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
def test_the_widened_path_weighs_what_the_searched_ones_do(
    retrain: list[str], domains: dict[str, Domain], nodes: str, batch_norm: str
) -> None:
    words = [*retrain, f"network.nodes={nodes}", f"network.batch_norm={batch_norm}"]
    widened = [*words, "retrain.paths=widened"]
    assert parameters(widened, domains) == pytest.approx(parameters(words, domains), rel=0.02)
    chosen = choose_architecture(load_recipe(widened), domains)
    table = ParameterTable(chosen.space, count_classes(domains), batch_norm)
    assert table.count(chosen.paths, nodes == "private").total == parameters(widened, domains)
    assert len(set(chosen.paths.values())) == 1


def test_a_widened_run_is_evaluated_and_reported_in_its_own_space(
    retrain: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main([*retrain, "name=multi_path"])
    fit.main([*retrain, "retrain.paths=widened", "name=widened"])
    run = run_of(retrain, "widened")
    scores = (run / "scores.json").read_text()
    evaluate.main([str(run)])
    assert (run / "scores.json").read_text() == scores
    architecture = Architecture.read(run / "architecture.json")
    assert architecture.space != build_space(load_recipe(retrain).space)
    stem = weights(run)["network.nodes.stem.conv.weight"]
    assert len(stem) == architecture.space.stem_width
    report.main([str(run_of(retrain, "multi_path")), str(run)])
    page = (run_of(retrain, "multi_path") / "report.md").read_text()
    assert "paths: widened" in page
    assert "The runs have different spaces" in page
    assert "has found other paths since" not in page


def test_files_that_do_not_serve_are_refused(
    retrain: list[str], domains: dict[str, Domain], tmp_path: Path
) -> None:
    space = build_space(load_recipe(retrain).space)
    generator = random.Random(1)
    different, other_space = tmp_path / "different.json", tmp_path / "other.json"
    paths = {domain: space.random_path(generator) for domain in ("birds", "cars")}
    Architecture(space, paths).write(different)
    wider = space.widened(2)
    Architecture(wider, {"birds": paths["birds"]}).write(other_space)
    for words, message in (
        ([f"retrain.common_file={different}"], "different.json .* 'birds' and 'cars' along diff"),
        ([f"retrain.common_file={other_space}"], "other.json does not serve: .* another space"),
        (["retrain.common_file=none.json"], "No architecture file at none.json"),
        (["architecture_file=null"], "names no architecture_file"),
        ([f"architecture_file={different}"], "no path for domain 'types'"),
    ):
        recipe = load_recipe([*retrain, "retrain.paths=widened", *words])
        with pytest.raises(UserError, match=message):
            choose_architecture(recipe, domains)


def frozen_part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}nodes."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
def test_a_frozen_backbone_is_the_averaged_one_of_its_run_before_and_after(
    retrain: list[str], batch_norm: str
) -> None:
    words = [*retrain, f"network.batch_norm={batch_norm}"]
    fit.main([*words, "data.domains=[birds]", "retrain.paths=common", "name=backbone"])
    backbone = run_of(retrain, "backbone")
    fit.main([*words, *of_backbone(backbone), "name=frozen"])
    run = run_of(retrain, "frozen")
    expected = frozen_part(weights(backbone, "best.ckpt"), "average.module.")
    for prefix in ("network.", "average.module."):
        found = frozen_part(weights(run), prefix)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():  # a row for each of the three domains
            assert torch.equal(found[name], tensor.expand_as(found[name])), name
    heads = weights(run)
    assert heads["average.module.heads.@cars.weight"].abs().sum() > 0
    scores = (run / "scores.json").read_text()
    evaluate.main([str(run)])
    assert (run / "scores.json").read_text() == scores
    report.main([str(run)])
    assert "paths: backbone" in (run / "report.md").read_text()


def test_a_backbone_with_shared_batch_norm_sees_images_as_it_was_trained_on_them(
    retrain: list[str], tmp_path: Path
) -> None:
    """Whatever domains are there later, and one after another; evaluation and exports too."""
    words = [*retrain, "network.batch_norm=shared"]
    fit.main([*words, "data.domains=[birds]", "retrain.paths=common", "name=backbone"])
    backbone = run_of(retrain, "backbone")
    fit.main([*words, *of_backbone(backbone), "data.domains=[birds,cars]", "name=two"])
    fit.main([*words, *of_backbone(run_of(retrain, "two")), "name=three"])
    (birds,) = Trained.open(backbone).metadata.domains.values()
    three = Trained.open(run_of(retrain, "three"))
    for name, domain in three.metadata.domains.items():
        assert (domain.mean, domain.std) == (birds.mean, birds.std), name
    fit.main([*words, "retrain.paths=common", "name=of_all"])
    of_all = Trained.open(run_of(retrain, "of_all")).metadata.domain("birds")
    assert of_all.mean != birds.mean
    before = Path(shutil.copytree(backbone, tmp_path / "before"))
    content = json.loads((before / "architecture.json").read_text())
    del content["source"]["normalisation"]
    (before / "architecture.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="trained by an earlier version, which did not note what"):
        fit.main([*words, *of_backbone(before), "name=other"])


def test_a_backbone_may_be_trained_on(retrain: list[str], backbone: Path) -> None:
    fit.main([*retrain, *of_backbone(backbone), "retrain.backbone=trained", "name=tuned"])
    before = frozen_part(weights(backbone, "best.ckpt"), "average.module.")
    after = frozen_part(weights(run_of(retrain, "tuned")), "network.")
    assert not torch.equal(before["stem.conv.weight"], after["stem.conv.weight"])


def test_backbones_that_do_not_serve_are_refused(
    retrain: list[str], backbone: Path, tmp_path: Path
) -> None:
    fit.main([SEARCH, *retrain[1:-1], "name=search"])
    fit.main([*retrain, "name=multi_path"])
    two = ["data.domains=[birds, cars]", "retrain.paths=common", "name=two"]
    fit.main([*retrain, *two])
    damaged = Path(shutil.copytree(backbone, tmp_path / "damaged"))
    best = damaged / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:3000])
    alien = Path(shutil.copytree(backbone, tmp_path / "alien"))
    shutil.copy(run_of(retrain, "two") / "checkpoints/best.ckpt", alien / "checkpoints")
    search = ["retrain.paths=backbone"]
    search += [f"retrain.backbone_file={run_of(retrain, 'search') / 'checkpoints/last.ckpt'}"]
    for words, message in (
        (of_backbone(Path("nowhere")), "No checkpoint at nowhere/checkpoints/best.ckpt; expected"),
        (search, r"search/checkpoints/last.ckpt is of a search"),
        (of_backbone(run_of(retrain, "multi_path")), "does not serve: .* along different paths"),
        (of_backbone(run_of(retrain, "two")), "batch norm for each of birds, cars and none for 't"),
        ([*of_backbone(backbone), "space.head_width=65"], "space.head_width is 64, the recipe's"),
        ([*of_backbone(backbone), "network.batch_norm=shared"], "with network.batch_norm=per_dom"),
        (of_backbone(damaged), "best.ckpt cannot be read as a checkpoint: .* Name another"),
        (of_backbone(alien), "best.ckpt is a checkpoint of another run"),
    ):
        with pytest.raises(UserError, match=message):
            fit.main([*retrain, *words, "name=refused"])
    assert not run_of(retrain, "refused").exists()


@pytest.mark.parametrize("stop", [2, 6])
@pytest.mark.parametrize("variant", ["random", "widened", "frozen", "trained"])
def test_each_variant_that_stopped_goes_on_as_if_it_had_not(
    retrain: list[str], backbone: Path, tmp_path: Path, variant: str, stop: int
) -> None:
    """Stopped before the first checkpoint (2) and at one (6)."""
    words = {
        "random": ["retrain.paths=random", "retrain.draw=2"],
        "widened": ["retrain.paths=widened"],
        "frozen": of_backbone(backbone),
        "trained": [*of_backbone(backbone), "retrain.backbone=trained"],
    }[variant]
    arguments = [*retrain, *words, "name=it"]
    fit.main([*arguments, f"runs_dir={tmp_path / 'unbroken'}"])
    with dying_at(stop):
        fit.main([*arguments, f"runs_dir={tmp_path / 'broken'}"])
    fit.main([*arguments, f"runs_dir={tmp_path / 'broken'}"])
    assert_same_run(tmp_path / "unbroken" / "it", tmp_path / "broken" / "it")
