import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from mdl.data.decathlon import DOMAINS as DECATHLON
from mdl.errors import UserError
from mdl.recipe import Recipe, SpaceRecipe, StageRecipe
from mdl.report import main
from mdl.results.chance import at_chance
from mdl.results.costs import compare_costs
from mdl.results.network_tables import bundle_table, network_table, parts_table
from mdl.results.run import Run, read_runs
from mdl.run_folder import RunFolder
from mdl.space import search_space
from mdl.space.architecture import Architecture
from mdl.space.search_space import ZERO, Block, SearchSpace

SMALL, LARGE = Block(3, 2, False), Block(5, 2, False)
PATHS: dict[str, search_space.Path] = {
    "birds": (SMALL, ZERO, SMALL, LARGE),
    "old_cars": (SMALL, SMALL, LARGE, LARGE),
    "types": (LARGE, LARGE, LARGE, ZERO),
}
CLASSES = {"birds": 3, "old_cars": 40, "types": 2} | {of.name: of.classes for of in DECATHLON}


class Runs:
    """Makes run folders as a search and a retraining leave them, without training."""

    def __init__(self, root: Path, space: SearchSpace) -> None:
        self.root, self.space = root, space

    def make(
        self, name: str, paths: Mapping[str, search_space.Path] = PATHS, **of: str
    ) -> RunFolder:
        """of: phase, nodes, architecture_file; a search where nothing is said."""
        space = self.space
        recipe = Recipe(phase=of.get("phase", "search"), name=name, runs_dir=str(self.root))
        recipe.architecture_file = of.get("architecture_file")
        recipe.network.nodes = of.get("nodes", "shared")
        recipe.trainer.max_steps = 20
        recipe.data.image_size = 16
        stages = [StageRecipe(**vars(stage)) for stage in space.stages]
        recipe.space = SpaceRecipe(space.stem_width, space.stem_stride, stages, space.head_width)
        recipe.space.kernels, recipe.space.expansions = [3, 5], [2]
        folder = RunFolder.of(recipe)
        folder.claim(recipe, folder.state())
        source = {"run": "a_search", "step": 20, "num_classes": {d: CLASSES[d] for d in paths}}
        Architecture(space, paths, source).write(folder.architecture_file)
        return folder

    def record(self, folder: RunFolder, quantity: str) -> None:
        records = [
            {"step": step} | {f"{quantity}/{name}": 1 / step for name in [*PATHS, "mean"]}
            for step in (10, 20)
        ]
        folder.metrics_file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def score(self, folder: RunFolder, accuracy: Mapping[str, float], name: str = "test") -> None:
        split = {
            "checkpoint": "best.ckpt",
            "checkpoint_step": 20,
            "images": dict.fromkeys(accuracy, 200),
            "accuracy": dict(accuracy),
            "mean": sum(accuracy.values()) / len(accuracy),
        }
        classes = {domain: CLASSES[domain] for domain in accuracy}
        splits = folder.scores().get("splits", {}) | {name: split}
        folder.write_scores({"step": 20, "num_classes": classes, "splits": splits})


@pytest.fixture
def runs(tmp_path: Path, space: SearchSpace) -> Runs:
    return Runs(tmp_path / "runs", space)


def report(*folders: RunFolder) -> str:
    main([str(folder.path) for folder in folders])
    return (folders[0].path / "report.html").read_text()


def test_a_search_is_reported_without_a_retraining_in_one_file(runs: Runs) -> None:
    folder = runs.make("a_search")
    page = report(folder)
    shown = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(shown) == 4  # similarity, map, two pairs
    assert all(target.startswith("data:image/svg+xml;base64,") for target in shown)
    assert "http" not in page and "<script" not in page
    assert "it has no scores yet" in page


def test_every_picture_of_the_plain_page_is_a_file_beside_it(runs: Runs) -> None:
    folder = runs.make("a_search")
    report(folder)
    files = re.findall(r"\]\((\S+)\)", (folder.path / "report.md").read_text())
    assert len(files) == 4
    assert all((folder.path / file).read_bytes().startswith(b"\x89PNG") for file in files)


def test_ratios_are_those_of_the_computed_costs(runs: Runs, space: SearchSpace) -> None:
    run = Run.read(runs.make("a_search").path, "a_search")
    classes = {domain: CLASSES[domain] for domain in PATHS}
    costs = compare_costs(Architecture(space, PATHS), classes, 16)
    ratios = [row[2] for row in network_table([run]).rows]
    expected = [costs.multi_path, costs.separate, costs.single_path]
    assert ratios == [f"{costs.ratio(cost):.2f}x" for cost in expected]
    saved = costs.multi_path.parameters.total / costs.separate.parameters.total
    assert bundle_table(run).rows[0][1:] == [f"{saved:.2f}x", "0.23x"]


def test_the_parts_of_the_parameters_add_up(runs: Runs) -> None:
    run = Run.read(runs.make("a_search").path, "a_search")
    for whole, parts in zip(network_table([run]).rows, parts_table([run]).rows, strict=True):
        counts = [int(cell.replace(",", "")) for cell in parts[1:4]]
        assert sum(counts) == int(whole[1].replace(",", ""))


def test_a_run_with_private_nodes_costs_what_its_bundle_costs(runs: Runs) -> None:
    run = Run.read(runs.make("bundle", phase="retrain", nodes="private").path, "bundle")
    own, bundle, _ = network_table([run]).rows
    assert own[1:4] == bundle[1:4]


def test_a_retraining_shows_the_controllers_of_its_search(runs: Runs) -> None:
    search = runs.make("a_search")
    runs.record(search, "search/entropy")
    file = str(search.architecture_file)
    retraining = runs.make("a_retraining", phase="retrain", architecture_file=file)
    page = report(retraining)
    assert "a_search: entropy of the controllers" in page
    assert "a_retraining has no metrics" in page
    assert "architecture_file=" + str(runs.root / "a_search_again/architecture.json") in page


def test_domains_at_chance_are_called_out(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = runs.make("a_retraining", phase="retrain")
    runs.score(folder, {"birds": 0.6, "old_cars": 0.03, "types": 0.52})
    remark = "at chance on 2 of 3 domains (test): old_cars (3.0%, guessing 2.5%), types (52.0%"
    assert remark in report(folder)
    assert remark in capsys.readouterr().out


@pytest.mark.parametrize(
    ("accuracy", "num_classes", "num_images", "expected"),
    [
        (0.10, 10, 1000, True),
        (0.11, 10, 1000, True),
        (0.15, 10, 1000, False),
        (0.15, 10, 20, True),
        (0.02, 10, 1000, True),
        (1.0, 1, 50, True),
    ],
)
def test_chance_is_judged_by_the_number_of_images(
    accuracy: float, num_classes: int, num_images: int, expected: bool
) -> None:
    assert at_chance(accuracy, 1 / num_classes, num_images) is expected


def test_the_score_of_the_ten_is_reported_with_its_terms(runs: Runs) -> None:
    ten = {of.name: PATHS["birds"] for of in DECATHLON}
    folder = runs.make("ten", ten, phase="retrain")
    runs.score(folder, {of.name: of.baseline for of in DECATHLON})
    page = report(folder)
    assert "Decathlon score" in page
    rows = (folder.path / "report.md").read_text()
    assert "| svhn | 96.5 | 96.5 | 250 |" in rows
    assert "| S |  |  | 2500 |" in rows
    assert "does not estimate" not in page  # validation was not scored
    runs.score(folder, {of.name: of.baseline for of in DECATHLON}, "val")
    assert "Validation accuracy of gtsrb does not estimate its test accuracy" in report(folder)


def test_other_domains_have_no_decathlon_score(runs: Runs) -> None:
    folder = runs.make("a_retraining", phase="retrain")
    runs.score(folder, {"birds": 0.6, "old_cars": 0.4, "types": 0.8})
    assert "Decathlon score" not in report(folder)


def test_chance_is_what_answering_the_most_frequent_class_scores(runs: Runs) -> None:
    """Half of the images are of one class: half right is no sign of having learnt."""
    folder = runs.make("a_retraining", phase="retrain")
    runs.score(folder, {"birds": 0.5, "old_cars": 0.4, "types": 0.8})
    content = folder.scores()
    content["splits"]["test"]["guessing"] = {"birds": 0.5, "old_cars": 0.025, "types": 0.5}
    folder.write_scores(content)
    assert "at chance on 1 of 3 domains (test): birds (50.0%, guessing 50.0%)" in report(folder)


def test_runs_of_different_domains_stand_side_by_side(runs: Runs) -> None:
    one = runs.make("one", phase="retrain")
    two = {domain: PATHS[domain] for domain in ("birds", "types")}
    other = runs.make("other", two, phase="retrain")
    runs.score(one, {"birds": 0.6, "old_cars": 0.4, "types": 0.8})
    runs.score(other, {"birds": 0.7, "types": 0.9})
    page = report(one, other)
    assert "The runs have different domains" in page
    assert (one.figures_dir / "path_map_other.png").is_file()
    assert (one.figures_dir / "overview.png").is_file()


def test_one_domain_has_a_map_but_nothing_to_be_alike_to(runs: Runs) -> None:
    folder = runs.make("alone", {"birds": PATHS["birds"]})
    assert "How alike" not in report(folder)
    assert [file.name for file in folder.figures_dir.glob("*.png")] == ["path_map.png"]


def test_the_first_value_of_a_step_is_the_curve_s(runs: Runs) -> None:
    folder = runs.make("a_retraining", phase="retrain")
    lines = ['{"step": 5, "val/accuracy/birds": 0.2}', '{"step": 5, "val/accuracy/birds": 0.9}']
    folder.metrics_file.write_text("\n".join(lines))
    assert Run.read(folder.path, "").series("val/accuracy") == {"birds": [(5, 0.2)]}


def test_folders_of_one_name_have_labels_of_their_own(
    runs: Runs, space: SearchSpace, tmp_path: Path
) -> None:
    elsewhere = Runs(tmp_path / "elsewhere", space)
    paths = [runs.make("same").path, elsewhere.make("same").path]
    assert [run.label for run in read_runs([*paths, paths[0]])] == ["same", "same_2"]


def test_an_unfinished_search_says_how_to_go_on(runs: Runs) -> None:
    folder = runs.make("a_search")
    folder.architecture_file.unlink()
    with pytest.raises(UserError, match=r"is not finished.*python -m mdl\.fit .*recipe\.yaml"):
        main([str(folder.path)])


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a run"):
        main([str(tmp_path)])


def test_a_misspelt_domain_of_the_pair_is_answered_with_the_right_one(runs: Runs) -> None:
    with pytest.raises(UserError, match="did you mean 'birds'"):
        main([str(runs.make("a_search").path), "--pair", "bird", "types"])


def test_the_pair_that_was_asked_for_is_shown(runs: Runs) -> None:
    folder = runs.make("a_search")
    main([str(folder.path), "--pair", "types", "birds"])
    pairs = [file.name for file in folder.figures_dir.glob("pair_*.svg")]
    assert pairs == ["pair_types_birds.svg"]
