from pathlib import Path

import pytest

from mdl.assembly import build_space
from mdl.errors import UserError
from mdl.recipe_callbacks import build_callbacks
from mdl.recipe_files import dump_recipe, load_recipe

_LIGHTNING = "lightning.pytorch.callbacks"
SEARCH, RETRAIN = "recipes/mpnas_search.yaml", "recipes/mpnas_retrain.yaml"
WHOLE = (SEARCH, RETRAIN)  # the others lie over one of these
COMPARISONS = sorted(map(str, Path("recipes").glob("compare*.yaml")))
OVERLAYS = sorted({str(file) for file in Path("recipes").glob("*.yaml")} - {*WHOLE, *COMPARISONS})


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("overlay", [None, *OVERLAYS])
def test_every_recipe_loads_and_its_parts_can_be_made(whole: str, overlay: str | None) -> None:
    recipe = load_recipe([whole, overlay] if overlay else [whole])
    assert build_space(recipe.space).layers
    assert build_callbacks(recipe)


@pytest.mark.parametrize("file", [*WHOLE, *OVERLAYS, *COMPARISONS])
def test_every_recipe_opens_with_what_it_is_for_and_its_command(file: str) -> None:
    head = Path(file).read_text().split("\n\n")[0]
    assert head.startswith("# ")
    assert f"python -m mdl.fit {file}" in head or f" {file}" in head
    assert "minutes" in head or "hours" in head or "days" in head


def test_search_and_retraining_share_their_space() -> None:
    search, retrain = load_recipe([SEARCH]), load_recipe([RETRAIN])
    assert build_space(search.space) == build_space(retrain.space)
    assert search.data.root == retrain.data.root
    assert retrain.architecture_file == "runs/mpnas_search/architecture.json"


def test_a_recipe_survives_its_dump(tmp_path: Path) -> None:
    recipe = load_recipe([SEARCH, "seed=3", "trainer.devices=2"])
    (tmp_path / "dump.yaml").write_text(dump_recipe(recipe))
    assert load_recipe([str(tmp_path / "dump.yaml")]) == recipe


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nname: a\n")
    (tmp_path / "b.yaml").write_text("name: b\n")
    files = [SEARCH, str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
    recipe = load_recipe([*files, "data.batch_size=4"])
    assert (recipe.seed, recipe.name, recipe.data.batch_size) == (1, "b", 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.rot=x", r"Unknown recipe key 'data.rot' in 'data.rot=x'; did you mean 'root'\?"),
        ("sead=1", r"Unknown recipe key 'sead' .* did you mean 'seed'\?"),
        ("search.reward.bta=1", r"'search.reward.bta' .* did you mean 'beta'\?"),
        ("space.stages=[{width: 3, depht: 4}]", "Unknown recipe key"),
        ("trainer.max_steps=many", "'trainer.max_steps' .* wrong type: Value 'many'"),
        ("data.held_out=lots", "'data.held_out' .* wrong type"),
        ("space.stages=3", "'space.stages' .* wrong type"),
        ("data=3", "'data' .* wrong type"),
        ("phase=serch", "phase is 'serch'; expected one of search, retrain"),
        ("network.batch_norm=none", "expected one of per_domain, shared"),
        ("data.held_out=1.5", "data.held_out is 1.5; expected at least 0 and below 1"),
        ("data.batch_size=1", "data.batch_size is 1; batch norm needs at least 2"),
        ("trainer.precision=16-mixed", "'16-mixed'; expected one of 32-true, bf16-mixed"),
        ("search.reward.beta=0.1", "beta is 0.1; expected 0 or less"),
        ("search.beta1=1.0", "search.beta1 is 1.0; expected at least 0 and below 1"),
        ("optimizer.clip_norm=0", "clip_norm is 0.0; expected a number above 0, or null"),
        ("trainer.compile=true", "a search takes other paths at every step"),
        ("search.start=layers", "'layers'; expected one of blocks, expansions"),
        ("network.batch_norm_ranks=some", "'some'; expected one of all, own"),
        ("trainer.threads=0", "threads is 0; expected a number above 0, or null"),
        ("data.workers=-1", "data.workers is -1; expected 0 or more"),
        ("data.domains=[]", "data.domains is \\[\\]; expected names of domains in brackets"),
        ("data.domains=birds", "data.domains is birds; expected names of domains in brackets"),
        ("trainer.max_steps=0", "trainer.max_steps is 0; expected a number above 0"),
        ("name=a/b", "name is 'a/b'; expected letters"),
        ("retrain.draw=-1", "retrain.draw is -1; expected 0 or more"),
        ("retrain.paths=serched", "retrain.paths is 'serched'; expected one of searched, common"),
        ("retrain.paths=backbone", "names no retrain.backbone_file"),
        ("retrain.backbone=thawed", "'thawed'; expected one of frozen, trained"),
        ("retrain.backbone_file=a.ckpt", "but retrain.paths is 'searched'; expected retrain.paths"),
        ("retrain.common_file=a.json", "but retrain.paths is 'searched'; expected common or wide"),
        ("search.new_blocks=true", "search.backbone_file is null: there is no trained network"),
        ("search.latency.runtime=onnx", "search.latency.runtime is onnx, but search.cost is macs"),
        ("name=${nothing}", "refers to a key that is not there"),
        ("space.stages=[{width: 3}]", r"The recipe lacks 'space.stages\[0\].depth'"),
        ("data.root=[", "cannot be read"),
        ("seed=-1", "seed is -1; expected at least 0 and below"),
        ("seed=4294967296", "expected at least 0 and below"),
        ("trainer.devices=null", "trainer.devices is None; expected how many, a list"),
        ("trainer.devices=many", "trainer.devices is 'many'; expected how many"),
        ("trainer.devices=1.5", "trainer.devices is 1.5; expected how many"),
        ("trainer.devices=true", "trainer.devices is True; expected how many"),
        ("trainer.devices=-2", "trainer.devices is -2; expected how many"),
        ("trainer.devices=[]", r"trainer.devices is \[\]; expected how many"),
        ("trainer.timeout=inf", "trainer.timeout is inf; expected a finite number"),
        ("optimizer.learning_rate=nan", "learning_rate is nan; expected a finite number"),
        ("optimizer.clip_norm=nan", "clip_norm is nan; expected a finite number"),
        ("search.reward.beta=nan", "beta is nan; expected a finite number"),
        ("retrain.backbone=trained", "retrain.paths is 'searched', which reuses none"),
    ],
)
def test_a_bad_override_is_refused_in_words(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe([SEARCH, override])


@pytest.mark.parametrize("devices", ["auto", "-1", "3", "[0, 2]", "'0,1'"])
def test_devices_are_counted_listed_or_all(devices: str) -> None:
    assert load_recipe([SEARCH, f"trainer.devices={devices}"])


def test_a_draw_is_of_random_paths() -> None:
    assert load_recipe([RETRAIN, "retrain.paths=random", "retrain.draw=3"]).retrain.draw == 3
    assert load_recipe([SEARCH, "retrain.draw=3"])  # has no part in a search
    with pytest.raises(UserError, match="retrain.draw is 3, .* retrain.paths is 'searched'"):
        load_recipe([RETRAIN, "retrain.draw=3"])


def test_a_backbone_is_what_all_domains_have_in_common() -> None:
    words = [RETRAIN, "retrain.paths=backbone", "retrain.backbone_file=runs/a/checkpoints/b.ckpt"]
    assert load_recipe(words).retrain.backbone == "frozen"
    with pytest.raises(UserError, match="network.nodes is 'private'; a backbone is what all"):
        load_recipe([*words, "network.nodes=private"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("retrain.backbone=trained", "a domain is added to a network that rests"),
        ("balancing.method=famo", "the domains that rest have no losses to balance"),
    ],
)
def test_a_domain_is_added_to_a_network_that_rests(word: str, message: str) -> None:
    words = [RETRAIN, "retrain.paths=added", "retrain.backbone_file=runs/a/checkpoints/b.ckpt"]
    words.append("callbacks.abdp=null")
    assert load_recipe(words).retrain.paths == "added"
    with pytest.raises(UserError, match=message):
        load_recipe([*words, word])


def test_random_networks_are_compared_on_the_same_images_and_have_a_path_per_domain() -> None:
    sizes = ["search.target.params=1e5", "search.target.macs=1e6"]
    frozen = [SEARCH, *sizes, "search.supernet_file=a.ckpt", "search.candidates=9"]
    assert load_recipe([*frozen, "search.paths_per_step=2"]).search.candidates == 9
    with pytest.raises(UserError, match="expected 2 or more a step"):
        load_recipe([*frozen, "search.paths_per_step=1"])
    last_round = [SEARCH, *sizes, "search.finalists=4"]
    assert load_recipe(last_round).search.finalists == 4
    with pytest.raises(UserError, match="search.controllers is 'common': these have a path per"):
        load_recipe([*last_round, "search.controllers=common"])


def test_what_looks_into_a_pass_does_not_go_with_a_compiled_one() -> None:
    words = [RETRAIN, "trainer.compile=true", "callbacks.abdp=null"]
    assert load_recipe(words).trainer.compile
    with pytest.raises(UserError, match="a compiled one cannot be looked into"):
        load_recipe([*words, "balancing.method=gradnorm"])


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No recipe at recipes/mpnas_serch.yaml; did you mean"):
        load_recipe(["recipes/mpnas_serch.yaml"])
    with pytest.raises(UserError, match="No recipe given"):
        load_recipe([])
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="is no YAML that can be read"):
        load_recipe([str(tmp_path / "bad.yaml")])
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="holds a list"):
        load_recipe([str(tmp_path / "list.yaml")])
    (tmp_path / "bare.yaml").write_text("phase: search\nname: x\n")
    with pytest.raises(UserError, match="The recipe lacks 'space.stem_width'"):
        load_recipe([str(tmp_path / "bare.yaml")])


def test_a_callback_can_be_taken_away() -> None:
    kept = build_callbacks(load_recipe([SEARCH, "callbacks.abdp=null"]))
    assert "ABDP" not in {type(callback).__name__ for callback in kept}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.abdp=off", "callbacks.abdp is False; expected {class: dotted.name"),
        ("callbacks.abdp.momentun=1", r"'callbacks.abdp.momentun'; did you mean 'momentum'\?"),
        ("callbacks.abdp.bound=0.5", "bound is 0.5; expected 1 or more"),
        ("callbacks.abdp.temperature=0", "temperature is 0; expected a number above 0"),
        ("callbacks.abdp.momentum=1", "momentum is 1; expected at least 0 and below 1"),
        ("callbacks.throughput.interval=0", "interval is 0; expected steps, 1 or more"),
        ("callbacks.throughput.interval=1.5", "interval is 1.5; expected a whole number"),
        ("callbacks.abdp.start=soon", "callbacks.abdp.start is 'soon'; expected a whole number"),
        ("callbacks.abdp.start=-5", "start is -5; expected steps, 0 or more"),
        ("callbacks.abdp.temperature=.nan", "temperature is nan; expected a number"),
        (
            f"callbacks.x={{class: {_LIGHTNING}.StochasticWeightAveraging, swa_lrs: 0.01}}",
            "callbacks.x is a StochasticWeightAveraging, which changes optimizer, network",
        ),
        (
            f"callbacks.x={{class: {_LIGHTNING}.RichProgressBar}}",
            "callbacks.x is a RichProgressBar; a run has a progress bar of its own",
        ),
        (
            f"callbacks.x={{class: {_LIGHTNING}.EarlyStopping, monitor: val/loss/mean}}",
            "looks at validations; a search has none",
        ),
        ("callbacks.abdp.class=os.system", "expected a dotted name in mdl, callbacks, lightning"),
        ("callbacks.abdp.class=callbacks.abdp.ADBP", "which cannot be found"),
        ("callbacks.abdp.class=callbacks.none.ABDP", "which cannot be found"),
    ],
)
def test_a_bad_callback_is_refused_in_words(override: str, message: str) -> None:
    recipe = load_recipe([SEARCH, override])
    with pytest.raises(UserError, match=message):
        build_callbacks(recipe)


def test_another_command_s_file_is_told() -> None:
    with pytest.raises(UserError, match="recipes/compare.yaml is of a comparison .* mdl.compare"):
        load_recipe(["recipes/compare.yaml"])
    with pytest.raises(UserError, match="Unknown option '--foo'; known: --print-recipe"):
        load_recipe([SEARCH, "--foo"])


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    words = ["runs_dir=~/runs", "data.root=~/ten", "data.decoded_dir=~/d", "wandb.project=~/x"]
    recipe = load_recipe([SEARCH, *words])
    assert (recipe.runs_dir, recipe.data.root) == ("/home/ada/runs", "/home/ada/ten")
    assert recipe.data.decoded_dir == "/home/ada/d"
    assert recipe.wandb.project == "~/x"
