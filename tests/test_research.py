"""Searches on a trained super-network, for a size, against random networks, and what is told."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml

from callbacks.search_watch import SearchWatch
from mdl import diagnose, fit
from mdl.architectures import choose_architecture
from mdl.assembly import (
    build_costs,
    build_retrain,
    build_search,
    build_space,
    build_target,
    find_domains,
)
from mdl.data.domains import Domain
from mdl.errors import UserError
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable, macs_of_all_domains
from mdl.networks.draws import RandomPaths
from mdl.networks.parameters import ParameterTable
from mdl.networks.sizing import SizeTable, Target, most_likely_choices
from mdl.recipe_files import load_recipe
from mdl.space.architecture import Architecture
from mdl.training.base import MultiDomainModule
from mdl.training.random_search import RandomSearchModule
from tests.dying import dying_at
from tests.test_fit import RETRAIN, SEARCH, assert_same_run, run_of, weights

WIDER = "space.stages=[{width: 8, depth: 3, stride: 2, activation: relu}]"


@pytest.fixture
def trained(small_run: list[str]) -> list[str]:
    """The words that a search on a trained super-network needs."""
    small_run += [WIDER, "search.block_weights=tied"]
    fit.main([SEARCH, *small_run, "name=first"])
    file = run_of(small_run, "first") / "checkpoints" / "last.ckpt"
    return [*small_run, f"search.supernet_file={file}", "search.paths_per_step=2"]


def sizes(run: Path) -> tuple[int, int]:
    found = Architecture.read(run / "architecture.json")
    classes = found.source["num_classes"]
    costs = CostTable(found.space, found.source["image_size"], classes)
    size = ParameterTable(found.space, classes, "per_domain").count(found.paths).total
    return size, macs_of_all_domains(found.paths, costs)


def middle(run: Path) -> list[str]:
    """Targets between the smallest and the largest network."""
    found = Architecture.read(run / "architecture.json")
    classes, space = found.source["num_classes"], found.space
    costs = CostTable(space, found.source["image_size"], classes)
    paths = dict.fromkeys(classes, space.uniform_path(space.reference_block))
    size = ParameterTable(space, classes, "per_domain").count(paths).total
    cost = macs_of_all_domains(paths, costs)
    return [f"search.target.params={1.1 * size}", f"search.target.macs={cost}"]


@pytest.mark.parametrize("names", ["birds", "birds,types", "birds,cars,types"])
def test_a_part_of_single_path_multi_head_is_asked_for_whatever_the_domains(
    small_run: list[str], names: str
) -> None:
    """The target in numbers is that part of the network that retrain.paths=common trains."""
    words = [*small_run, WIDER, f"data.domains=[{names}]"]
    common = load_recipe([RETRAIN, *words, "retrain.paths=common"])
    domains = find_domains(common)
    architecture = choose_architecture(common, domains)
    network = build_retrain(common, domains, architecture).network
    macs = macs_of_all_domains(architecture.paths, build_costs(common, domains))
    ratios = ["search.target.params_ratio=0.8", "search.target.macs_ratio=0.5"]
    target = build_target(load_recipe([SEARCH, *words, *ratios]), domains)
    assert target.params == pytest.approx(0.8 * sum(p.numel() for p in network.parameters()))
    assert target.macs == pytest.approx(0.5 * macs)


@pytest.mark.parametrize("recipe", ["compare_small_images", "compare_sizes"])
@pytest.mark.parametrize("classes", [(2, 300), (5, 9, 40), (10,) * 50])
def test_the_targets_of_comparisons_can_be_met_by_any_domains(
    recipe: str, classes: tuple[int, ...]
) -> None:
    """By likely paths, a common one, and random ones; sizes of a comparison's own space."""
    content = yaml.safe_load(Path(f"recipes/{recipe}.yaml").read_text())
    base = load_recipe([SEARCH, "recipes/small_images.yaml"])
    space, size = build_space(base.space), base.data.image_size
    num_classes = {f"domain{i}": count for i, count in enumerate(classes)}
    parameters = ParameterTable(space, num_classes, "per_domain")
    costs = CostTable(space, dict.fromkeys(num_classes, size), num_classes)
    paths = dict.fromkeys(num_classes, space.uniform_path(space.reference_block))
    whole = parameters.count(paths).total, macs_of_all_domains(paths, costs)
    met = 0
    for run in content["runs"].values():
        words = [word for word in run["settings"] if word.startswith("search.target.")]
        ratios = {key: float(value) for key, _, value in (w.partition("=") for w in words)}
        target = Target(
            *(
                ratio and ratio * of
                for ratio, of in zip(
                    (ratios.get(f"search.target.{key}_ratio") for key in ("params", "macs")),
                    whole,
                    strict=True,
                )
            )
        )
        if not target:
            continue
        common = "search.controllers=common" in run["settings"]
        table = SizeTable(parameters, costs, "network.nodes=private" in run["settings"], common)
        controllers = Controllers(space, list(num_classes), common, "expansions")
        most_likely_choices(controllers.log_probabilities().detach(), table, target)
        met += 1
        if target.params is not None and target.macs is not None:
            RandomPaths(list(num_classes), target.params, target.macs, costs, parameters).draw(0)
    assert met > 4


def test_controllers_are_searched_again_for_a_size_and_the_weights_rest(trained: list[str]) -> None:
    first, again = run_of(trained, "first"), run_of(trained, "again")
    target = middle(first)
    fit.main([SEARCH, *trained, *target, "name=again"])
    asked = [float(word.partition("=")[2]) for word in target]
    for found, wanted in zip(sizes(again), asked, strict=True):
        assert abs(found / wanted - 1) <= 0.05
    before, after = weights(first), weights(again)
    of_network = [name for name in before if name.startswith("network.")]
    assert of_network
    assert all(torch.equal(before[name], after[name]) for name in of_network)
    assert not torch.equal(before["controllers.logits"], after["controllers.logits"])


@pytest.fixture
def common_start(trained: list[str]) -> list[str]:
    """The words of a search whose controllers set out from one for all."""
    fit.main([SEARCH, *trained, "search.controllers=common", "name=common"])
    file = run_of(trained, "common") / "checkpoints" / "last.ckpt"
    return [*trained, f"search.common_file={file}"]


def test_every_controller_sets_out_from_the_common_one(common_start: list[str]) -> None:
    # too slow to leave it
    fit.main([SEARCH, *common_start, "search.learning_rate=1e-9", "name=set_out"])
    common = weights(run_of(common_start, "common"))["controllers.logits"]
    found = weights(run_of(common_start, "set_out"))["controllers.logits"]
    torch.testing.assert_close(found, common.expand_as(found), atol=1e-6, rtol=0)
    of_all = Architecture.read(run_of(common_start, "common") / "architecture.json")
    mine = Architecture.read(run_of(common_start, "set_out") / "architecture.json")
    assert mine.paths == of_all.paths


def test_a_search_from_a_common_start_goes_on_as_if_it_had_not_stopped(
    common_start: list[str],
) -> None:
    words = [SEARCH, *common_start]
    fit.main([*words, "name=unbroken"])
    with dying_at(6, "record"):
        fit.main([*words, "name=broken"])
    # what it set out from is in its own checkpoint by now
    (run_of(common_start, "common") / "checkpoints" / "last.ckpt").unlink()
    fit.main([*words, "name=broken"])
    assert_same_run(run_of(common_start, "unbroken"), run_of(common_start, "broken"))


def test_a_common_start_is_of_a_search_of_one_path(trained: list[str]) -> None:
    file = run_of(trained, "first") / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="expected one with search.controllers=common"):
        fit.main([SEARCH, *trained, f"search.common_file={file}", "name=other"])


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("search.controllers=common", "where the controllers of single domains set out from"),
        ("search.finalists=4", "no controllers are searched"),
    ],
)
def test_a_common_start_is_of_controllers_of_single_domains(word: str, text: str) -> None:
    words = [SEARCH, "search.common_file=a.ckpt", "search.controllers_file=b.ckpt", word]
    if word == "search.controllers=common":
        words.remove("search.controllers_file=b.ckpt")
    with pytest.raises(UserError, match=text):
        load_recipe(words)


@pytest.mark.parametrize("method", [[], ["search.candidates=3"]], ids=["controllers", "random"])
def test_a_search_on_a_frozen_supernetwork_goes_on_as_if_it_had_not_stopped(
    trained: list[str], method: list[str]
) -> None:
    words = [SEARCH, *trained, *middle(run_of(trained, "first")), *method]
    fit.main([*words, "name=unbroken"])
    with dying_at(6, "record"):
        fit.main([*words, "name=broken"])
    fit.main([*words, "name=broken"])
    assert_same_run(run_of(trained, "unbroken"), run_of(trained, "broken"))


def test_the_best_of_random_networks_is_the_one_with_the_best_mean_reward(
    trained: list[str], domains: dict[str, Domain]
) -> None:
    words = [*trained, *middle(run_of(trained, "first")), "search.candidates=5"]
    fit.main([SEARCH, *words, "name=random"])
    run = run_of(trained, "random")
    module = build_search(load_recipe([SEARCH, *words]), domains)
    assert isinstance(module, RandomSearchModule)
    state = weights(run)
    rewards = state["reward_sums"] / state["times"]
    assert sorted(state["times"].tolist()) == [3, 3, 3, 3, 4]  # 8 steps, two networks in each
    paths = module.controllers.paths(module.candidates[int(rewards.argmax())])
    assert Architecture.read(run / "architecture.json").paths == paths


def test_a_diagnosis_compares_with_random_networks_and_ranks_what_was_trained(
    trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, plain = run_of(trained, "first"), [word for word in trained if "search." not in word]
    file = f"architecture_file={first / 'architecture.json'}"
    names = [f"draw{draw}" for draw in range(3)]
    for draw, name in enumerate(names):
        random = ["retrain.paths=random", f"retrain.draw={draw}", "trainer.max_steps=4"]
        fit.main([RETRAIN, *plain, file, *random, f"name={name}"])
    capsys.readouterr()
    diagnose.main([str(first), *(str(run_of(trained, n)) for n in names), "--random", "4"])
    assert "The reward of found and of random paths" in capsys.readouterr().out
    content = json.loads((first / "diagnosis.json").read_text())
    assert len(content["found_and_random"]["random"]) == 4
    assert content["reward_and_training"]["runs"] == names
    for of_run, name in zip(content["reward_and_training"]["trained"], names, strict=True):
        scores = json.loads((run_of(trained, name) / "scores.json").read_text())
        assert of_run == pytest.approx(scores["splits"]["val"]["accuracy"])
    assert (first / "figures" / "reward.png").is_file()


@pytest.fixture
def finalists(trained: list[str]) -> list[str]:
    """The words that finalists of a search's controllers need."""
    words = [word for word in trained if "search." not in word]
    file = run_of(trained, "first") / "checkpoints" / "last.ckpt"
    target = middle(run_of(trained, "first"))
    return [SEARCH, *words, *target, "search.finalists=4", f"search.controllers_file={file}"]


def test_finalists_have_the_size_asked_for_and_the_best_is_one_of_them(
    finalists: list[str], trained: list[str]
) -> None:
    fit.main([*finalists, "name=last_round"])
    run = run_of(trained, "last_round")
    found = Architecture.read(run / "architecture.json")
    files = sorted((run / "finalists").iterdir())
    assert [file.name for file in files] == ["00.json", "01.json", "02.json", "03.json"]
    all_of_them = [Architecture.read(file).paths for file in files]
    assert all_of_them[found.source["finalist"]] == found.paths
    assert all(one != other for at, one in enumerate(all_of_them) for other in all_of_them[:at])
    asked = [float(w.partition("=")[2]) for w in finalists if w.startswith("search.target.")]
    for size, wanted in zip(sizes(run), asked, strict=True):
        assert abs(size / wanted - 1) <= 0.05
    with pytest.raises(UserError, match="a search's last round, which has no super-network"):
        diagnose.main([str(run)])


@pytest.mark.parametrize("of", ["controllers", "random"])
def test_a_last_round_goes_on_as_if_it_had_not_stopped(
    finalists: list[str], trained: list[str], of: str
) -> None:
    words = [word for word in finalists if of == "controllers" or "controllers_file" not in word]
    fit.main([*words, "name=unbroken"])
    with dying_at(6, "record"):
        fit.main([*words, "name=broken"])
    fit.main([*words, "name=broken"])
    assert_same_run(run_of(trained, "unbroken"), run_of(trained, "broken"))


def test_a_last_round_that_is_made_longer_records_shares_of_what_it_answers(
    finalists: list[str], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_right = torch.ones(3)
    monkeypatch.setattr(MultiDomainModule, "accuracies", lambda *_: all_right)
    for steps in (9, 16):
        fit.main([*finalists, "name=longer", f"trainer.max_steps={steps}"])
    file = run_of(trained, "longer") / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    shares = [of["search/accuracy/mean"] for of in records if "search/accuracy/mean" in of]
    assert len(shares) > 2
    assert set(shares) == {1.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.finalists=1"], "search.finalists is 1; expected 2 or more"),
        (["search.finalists=null"], "search.finalists is null; expected how many networks"),
        (["search.candidates=3"], "are both given: finalists are trained from scratch"),
        (["search.controllers=common"], "whose recipe has search.controllers=per_domain"),
        (["search.controllers_file=nowhere.ckpt"], "which is no run's checkpoint"),
        (
            ["search.controllers_file=null", "search.target.macs=null"],
            "neither search.controllers_file nor search.target.macs is given",
        ),
        (["balancing.method=dwa", "callbacks.abdp=null"], "which weighs the losses of one network"),
    ],
)
def test_what_a_last_round_cannot_do_is_refused(
    finalists: list[str], words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit.main([*finalists, "name=other", *words])


def test_controllers_that_have_decided_have_no_finalists(
    finalists: list[str], trained: list[str]
) -> None:
    decided = [SEARCH, *trained, "search.learning_rate=50", "name=decided"]
    fit.main(decided)
    file = run_of(trained, "decided") / "checkpoints" / "last.ckpt"
    words = [word for word in finalists if "target" not in word]
    with pytest.raises(UserError, match="give one network only"):
        fit.main([*words, f"search.controllers_file={file}", "name=other"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.block_weights=own"], "whose recipe has search.block_weights=tied"),
        (["data.image_size=10"], "whose recipe has data.image_size=12"),
        (["search.target.params=.inf"], "search.target.params is inf; expected a finite number"),
        (["data.held_out=0.5"], "whose recipe has data.held_out=0.2"),
        (["network.batch_norm=shared"], "whose recipe has network.batch_norm=per_domain"),
        (["search.supernet_file=nowhere.ckpt"], "which is no run's checkpoint"),
        (["search.candidates=3"], "search.target.params is null"),
        (
            ["search.target.params=1e6", "search.target.params_ratio=1"],
            "search.target.params and search.target.params_ratio are both given",
        ),
        (["search.target.macs_ratio=0"], "macs_ratio is 0.0; expected a number above 0, or null"),
        (["balancing.method=dwa", "callbacks.abdp=null"], "no weights are trained"),
        (["search.target.params=1e9"], "No paths of the wanted size were found"),
    ],
)
def test_what_a_trained_supernetwork_cannot_serve_is_refused(
    trained: list[str], words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit.main([SEARCH, *trained, "name=other", *words])


def test_a_supernetwork_is_taken_of_a_finished_search_only(trained: list[str]) -> None:
    (run_of(trained, "first") / "architecture.json").unlink()
    with pytest.raises(UserError, match="of a search that is not finished. Go on with it: python"):
        fit.main([SEARCH, *trained, "name=other"])


def test_a_diagnosis_needs_networks_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--random is 1; expected at least 2 networks"):
        diagnose.main([str(tmp_path), "--random", "1"])


def test_a_retraining_and_a_frozen_search_are_no_supernetworks(trained: list[str]) -> None:
    plain = [word for word in trained if "search." not in word]
    first = run_of(trained, "first")
    fit.main([RETRAIN, *plain, f"architecture_file={first / 'architecture.json'}"])
    fit.main([SEARCH, *trained, "name=frozen"])
    for name, kind in {
        "mpnas_retrain": "a retraining",
        "frozen": "a search that trained no",
    }.items():
        file = run_of(trained, name) / "checkpoints" / "last.ckpt"
        with pytest.raises(UserError, match=f"a checkpoint of {kind}"):
            fit.main([SEARCH, *trained, f"search.supernet_file={file}", "name=other"])


def test_a_collapse_and_domains_at_chance_are_told_once(
    small_run: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    watch = "callbacks.watch={class: callbacks.search_watch.SearchWatch, interval: 2}"
    with caplog.at_level(logging.WARNING, SearchWatch.__module__):
        fit.main(
            [
                SEARCH,
                *small_run,
                watch,
                "search.warmup_fraction=0",
                "search.sharing=10",
                "search.learning_rate=1",
                "trainer.max_steps=24",
            ]
        )
    told = [record.getMessage() for record in caplog.records]
    assert sum("collapses onto one path" in sentence for sentence in told) == 1
    at_chance = [sentence for sentence in told if "is at chance" in sentence]
    assert len({sentence.split("'")[1] for sentence in at_chance}) == len(at_chance) > 0
