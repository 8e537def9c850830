"""A domain added later to a trained network, whole."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mdl import fit, report
from mdl.assembly import find_domains
from mdl.data.domains import Domain
from mdl.data.order import Integers
from mdl.data.parcel import Part
from mdl.data.steps import TrainingOrder
from mdl.errors import UserError
from mdl.networks.controller import Controllers
from mdl.networks.multipath import path_users
from mdl.run_folder import RunFolder
from mdl.scoring import choose_checkpoint
from mdl.space.architecture import Architecture
from mdl.trained import Trained
from mdl.weights import _averaged_network, read_checkpoint
from tests.test_fit import RETRAIN, SEARCH, run_of
from tests.test_fit import weights as weights_of

OVERLAY = "recipes/add_domain.yaml"
NEW = "types"


@pytest.fixture
def two(small_run: list[str], tmp_path: Path) -> Path:
    """A network of two domains, trained on its own search's paths."""
    words = [*small_run, "data.domains=[birds,cars]"]
    fit.main([SEARCH, *words, "name=two_search"])
    file = f"architecture_file={run_of(small_run, 'two_search') / 'architecture.json'}"
    fit.main([RETRAIN, *words, file, "name=two"])
    return run_of(small_run, "two") / "checkpoints" / "best.ckpt"


def search_words(small_run: list[str], two: Path) -> list[str]:
    words = ["trainer.max_steps=8", f"data.domains=[{NEW}]", f"search.backbone_file={two}"]
    return [SEARCH, OVERLAY, *small_run, *words, "name=added_search"]


def added_words(small_run: list[str], two: Path) -> list[str]:
    file = run_of(small_run, "added_search") / "architecture.json"
    words = ["retrain.paths=added", f"retrain.backbone_file={two}", f"architecture_file={file}"]
    return [RETRAIN, *small_run, *words, "name=three"]


def test_the_other_domains_answer_the_same_to_the_bit(
    small_run: list[str], two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.main(search_words(small_run, two))
    fit.main(added_words(small_run, two))
    assert f"Added {NEW}: " in capsys.readouterr().out
    before, after = Trained.open(two.parent.parent), Trained.open(run_of(small_run, "three"))
    for domain in ("birds", "cars"):
        contents, _ = before.images(domain, "val", 6)
        assert torch.equal(before.logits(domain, contents), after.logits(domain, contents))


def test_the_command_that_is_offered_next_adds_the_domain(
    small_run: list[str], two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the data hold more domains, and losses were balanced in the search."""
    whole = Path(small_run[[w.startswith("data.root=") for w in small_run].index(True)][10:])
    data = Path(shutil.copytree(whole, tmp_path / "data"))
    shutil.copytree(data / "birds", data / "others")
    content = json.loads((data / "others" / "domain.json").read_text())
    (data / "others" / "domain.json").write_text(json.dumps(content | {"name": "others"}))
    small_run = [*small_run, f"data.root={data}"]
    fit.main([*search_words(small_run, two), "balancing.method=uncertainty"])
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("Next: "))
    words = shlex.split(line.removeprefix("Next: python -m mdl.fit "))
    fit.main([word for word in words if not word.startswith("trainer.max_steps")])
    added = Trained.open(run_of(small_run, "added_search_retrain"))
    assert list(added.metadata.domains) == ["birds", "cars", NEW]


def test_only_what_is_the_new_domain_s_own_has_moved(small_run: list[str], two: Path) -> None:
    fit.main(search_words(small_run, two))
    fit.main(added_words(small_run, two))
    before, after = Trained.open(two.parent.parent), Trained.open(run_of(small_run, "three"))
    whole = after.network([*after.metadata.domains]).state_dict()
    for name, tensor in before.network(["birds", "cars"]).state_dict().items():
        kept = whole[name]
        if ".bn" in name:  # the new domain's row is the last
            kept = kept[: len(tensor)]
        assert torch.equal(kept, tensor), name
    assert after.architecture.source["added"] == [NEW]


def test_a_network_with_an_addition_is_read_in_the_order_of_its_data(small_run: list[str]) -> None:
    """The new domain comes first by its name, and last in the architecture's file."""
    words = [*small_run, "data.domains=[cars,types]"]
    fit.main([SEARCH, *words, "name=two_search"])
    file = f"architecture_file={run_of(small_run, 'two_search') / 'architecture.json'}"
    fit.main([RETRAIN, *words, file, "name=two"])
    two = run_of(small_run, "two") / "checkpoints" / "best.ckpt"
    fit.main([*search_words(small_run, two), "data.domains=[birds]"])
    fit.main(added_words(small_run, two))
    folder = RunFolder(run_of(small_run, "three"))
    names = ["birds", "cars", "types"]
    assert list(Architecture.read(folder.architecture_file).domains) != names
    recipe, trained = folder.recipe(), Trained.open(folder.path)
    checkpoint = folder.checkpoints_dir / choose_checkpoint(folder)
    content = read_checkpoint(checkpoint, recipe, find_domains(recipe))
    network = _averaged_network(content, folder, recipe)
    expected = trained.network(names)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    x = torch.randn(2, 3, 12, 12)
    for domain in names:
        paths = {domain: trained.architecture.paths[domain]}
        ours = network.eval()({domain: x}, paths)[domain]
        assert torch.equal(ours, expected({domain: x}, paths)[domain])


def test_a_new_path_leads_through_nodes_that_are_there(small_run: list[str], two: Path) -> None:
    fit.main(search_words(small_run, two))
    trained = Architecture.read(two.parent.parent / "architecture.json")
    found = Architecture.read(run_of(small_run, "added_search") / "architecture.json")
    assert set(path_users(found.space, found.paths)) <= set(
        path_users(trained.space, trained.paths)
    )


def test_a_search_for_a_new_domain_leaves_trained_blocks_as_they_are(
    small_run: list[str], two: Path
) -> None:
    fit.main([*search_words(small_run, two), "search.new_blocks=true"])
    searched = weights_of(run_of(small_run, "added_search"))
    trained = weights_of(two.parent.parent, "best.ckpt")
    reused = 0
    for name, tensor in searched.items():
        known = trained.get(f"average.module.{name.removeprefix('network.')}")
        if known is not None and "nodes" in name and ".bn" not in name:
            assert torch.equal(tensor, known), name
            reused += 1
    assert reused > 5


def test_what_is_added_has_the_size_asked_for(
    small_run: list[str], two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = 900
    size = ["search.new_blocks=true", f"search.target.params={wanted}"]
    fit.main([*search_words(small_run, two), *size])
    fit.main(added_words(small_run, two))
    (found,) = re.findall(rf"Added {NEW}: ([\d,]+) parameters", capsys.readouterr().out)
    assert int(found.replace(",", "")) == pytest.approx(wanted, rel=0.05)


def test_the_best_of_random_additions_is_found_by_training_them(
    small_run: list[str], two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, words = 900, search_words(small_run, two)
    words += ["search.new_blocks=true", f"search.target.params={wanted}", "search.finalists=3"]
    fit.main(words)
    folder = RunFolder(run_of(small_run, "added_search"))
    found, drawn = Architecture.read(folder.architecture_file), folder.finalists()
    assert len({str(one.paths) for one in drawn}) == 3
    assert found.paths == drawn[found.source["finalist"]].paths

    trained, after = weights_of(two.parent.parent, "best.ckpt"), weights_of(folder.path)
    reused = moved = 0
    for number, one in enumerate(drawn):
        for node in path_users(one.space, one.paths):
            of_node = f"nodes.{node.key}."
            for name, tensor in after.items():
                if not name.startswith(f"network.{number}.{of_node}") or ".bn" in name:
                    continue
                known = trained.get(f"average.module.{name.split('.', 2)[2]}")
                reused += known is not None
                moved += known is None
                assert known is None or torch.equal(tensor, known), name
    assert reused > 5
    assert moved > 0
    fit.main(added_words(small_run, two))
    (size,) = re.findall(rf"Added {NEW}: ([\d,]+) parameters", capsys.readouterr().out)
    assert int(size.replace(",", "")) == pytest.approx(wanted, rel=0.05)


def test_additions_that_a_last_round_is_to_choose_of_have_a_size(
    small_run: list[str], two: Path
) -> None:
    words = [*search_words(small_run, two), "search.finalists=4"]
    with pytest.raises(UserError, match="expected how many parameters may be added"):
        fit.main(words)
    words.append("search.target.params=900")
    with pytest.raises(UserError, match=r"search\.controllers_file are both given"):
        fit.main([*words, "search.controllers_file=a.ckpt"])


def test_one_addition_leaves_nothing_to_choose_of(
    small_run: list[str], two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Controllers, "perturbed", lambda of, *_: of.log_probabilities().detach())
    words = ["search.new_blocks=true", "search.target.params=900", "search.finalists=3"]
    with pytest.raises(UserError, match=r"One path only .* adds search.target.params=900: there"):
        fit.main([*search_words(small_run, two), *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.domains=[cars]"], "has a path for 'cars' already"),
        (["space.head_width=17"], "does not serve: The architecture belongs to another space"),
        (["network.batch_norm=shared"], "Expected network.batch_norm=per_domain"),
        (["network.nodes=private"], "expected network.nodes=shared"),
        (["search.block_weights=tied"], "blocks have weights of their own"),
        (["search.supernet_file=a.ckpt"], "are both given"),
        (["balancing.method=gradnorm"], "with search.backbone_file these rest"),
        (["search.backbone_file=nowhere.ckpt"], "No checkpoint at nowhere.ckpt"),
    ],
)
def test_what_does_not_fit_is_refused(
    small_run: list[str], two: Path, words: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        fit.main([*search_words(small_run, two), *words])


def test_domains_that_rest_see_the_images_that_they_were_trained_on(
    small_run: list[str], two: Path, packed: Path, tmp_path: Path
) -> None:
    fit.main(search_words(small_run, two))
    words = added_words(small_run, two)
    for other in ("data.image_size=10", "data.per_domain.cars.load_size=20"):
        with pytest.raises(UserError, match=r"whose recipe has data\.\w+=.*Give these words too"):
            fit.main([*words, other])
    again = Path(shutil.copytree(packed, tmp_path / "again"))
    cars = Domain.read(again / "cars")
    replace(cars, mean=(0.1, 0.2, 0.3)).write()
    with pytest.raises(UserError, match=r"on other flips, fit or colours .* of 'cars' than"):
        fit.main([*words, f"data.root={again}"])


def test_domains_that_rest_have_no_loss_and_weigh_nothing(small_run: list[str], two: Path) -> None:
    fit.main(search_words(small_run, two))
    abdp = "callbacks.abdp={class: callbacks.abdp.ABDP, start: 0}"
    fit.main([*added_words(small_run, two), abdp])
    run = run_of(small_run, "three")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [of for of in records if "train/loss/mean" in of]
    assert losses
    for of in losses:
        assert of["train/loss/mean"] == of[f"train/loss/{NEW}"] > 0
        assert of[f"train/domain_weight/{NEW}"] == pytest.approx(1)
        assert "train/loss/cars" not in of
    report.main([str(run)])


def test_a_domain_that_is_there_already_is_not_added(small_run: list[str], two: Path) -> None:
    file = f"architecture_file={two.parent.parent / 'architecture.json'}"
    words = ["retrain.paths=added", f"retrain.backbone_file={two}", file, "name=three"]
    with pytest.raises(UserError, match="expected a domain that it lacks"):
        fit.main([RETRAIN, *small_run, *words])


def test_training_decodes_no_image_of_another_domain(
    small_run: list[str], two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    fill = TrainingOrder.fill

    def noted(order: TrainingOrder, numbers: Integers, part: Part) -> None:
        trained.append(order.images.domain.name)
        fill(order, numbers, part)

    fit.main(search_words(small_run, two))
    monkeypatch.setattr(TrainingOrder, "fill", noted)
    fit.main(added_words(small_run, two))
    assert set(trained) == {NEW}
    scores = RunFolder.find(run_of(small_run, "three")).scores()
    assert list(scores["splits"]["test"]["accuracy"]) == ["birds", "cars", NEW]
