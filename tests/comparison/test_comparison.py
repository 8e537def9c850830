from pathlib import Path

import pytest
import yaml

from mdl.comparison.comparison import Comparison
from mdl.comparison.comparison_file import read_comparison
from mdl.comparison.runner import Runner
from mdl.errors import UserError

SMALL = {
    "name": "small",
    "seeds": [3, 4],
    "runs": {"a_search": {}, "b_search": {"settings": ["network.nodes=private"]}},
    "rows": {
        "first": {"search": "a_search"},
        "second": {"search": "b_search", "settings": ["network.nodes=private"]},
    },
}


def read(content: object, folder: Path, *words: str) -> Comparison:
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_comparison([str(file), *words])


@pytest.mark.parametrize("file", sorted(map(str, Path("recipes").glob("compare*.yaml"))))
def test_the_runs_of_the_project_s_tables_can_be_made(file: str, tmp_path: Path) -> None:
    comparison = read_comparison([file, f"runs_dir={tmp_path}"])
    assert {comparison.baseline, comparison.reference, comparison.main} <= set(comparison.rows)
    runner = Runner(comparison, print, "")
    runner.look()
    assert len(runner.plan.jobs) > len(comparison.rows)


def test_a_plain_key_is_the_comparison_s_and_a_dotted_one_every_run_s(tmp_path: Path) -> None:
    comparison = read(SMALL, tmp_path, "name=other", "seeds=[7]", "data.root=there")
    assert (comparison.name, comparison.seeds) == ("other", (7,))
    assert comparison.overrides == ("data.root=there",)


def test_the_first_seed_is_tuned_on_where_no_other_is_said(tmp_path: Path) -> None:
    assert read(SMALL, tmp_path).tuning_seed == 3
    assert read(SMALL | {"tuning_seed": 9}, tmp_path).tuning_seed == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": ["seed=3"]}, "A setting is seed=3, which the comparison itself gives"),
        (
            {"rows": {"first": {"search": "a_search", "tries": [["seed=1"], ["seed=2"]]}}},
            "A setting is seed=1",
        ),
        ({"runs": {"a_search": {"settings": ["name=x"]}, "b_search": {}}}, "A setting is name=x"),
        ({"phase": "search"}, "is a run's recipe .'phase'.: python -m mdl.fit"),
        ({"sead": 1}, "Unknown key 'sead' in .*did you mean 'seeds'"),
        ({"rows": {}}, "has no rows"),
        ({"rows": None}, "has no rows"),
        ({"seeds": []}, r"seeds is \[\]"),
        ({"seeds": [1, 1]}, "expected different numbers"),
        ({"seeds": ["x"]}, "seeds is 'x'; expected a whole number"),
        ({"workers": 0}, "workers is 0"),
        ({"name": "a/b"}, "it names a folder"),
        ({"name": None}, "has no 'name'"),
        ({"settings": "data.root=x"}, "expected a list"),
        ({"settings": [{"a": 1}]}, "expected words of mdl.fit"),
        ({"main": "frist"}, "main names 'frist', which is no row; did you mean 'first'"),
        ({"figures": {"bars": [["frist"]]}}, "figures.bars names 'frist'"),
        ({"runs": {"first": {}}}, "names a run and a row"),
        ({"runs": {"a-search": {}}}, "letters, digits and '_' only"),
        ({"runs": {"a_search": {"phase": "train"}}}, "expected 'search' or 'retrain'"),
        ({"rows": {"one": {"serch": "x"}}}, "Unknown key 'serch' in rows.one.*'search'"),
        ({"rows": {"one": {"search": "a_serch"}}}, "neither a run nor a row.*'a_search'"),
        ({"rows": {"one": {"settings": ["x={a_serch}/y"]}}}, "did you mean 'a_search'"),
        ({"rows": {"one": {"like": "two"}}}, "rows.one.like names 'two'"),
        ({"rows": {"one": {}, "two": {"label": "one"}}}, "Two rows have the label 'one'"),
        ({"rows": {"one": {"draws": 0}}}, "Row 'one' has no runs"),
        ({"rows": {"one": {"tries": []}}}, "Row 'one' has no runs"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    change: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        read(SMALL | change, tmp_path)


def test_runs_that_need_each_other_are_refused_with_the_circle(tmp_path: Path) -> None:
    runs = {"a": {"settings": ["x={b}/y"]}, "b": {"search": "a"}}
    with pytest.raises(UserError, match="in a circle: a -> b -> a"):
        read(SMALL | {"runs": runs, "rows": {"one": {"search": "a"}}}, tmp_path)
    with pytest.raises(UserError, match="in a circle: one -> one"):
        read(SMALL | {"rows": {"one": {"like": "one"}}}, tmp_path)


def test_a_row_of_several_draws_is_no_folder_that_others_can_name(tmp_path: Path) -> None:
    rows = {"many": {"search": "a_search", "draws": 2}, "one": {"settings": ["x={many}/y"]}}
    with pytest.raises(UserError, match="row 'many', which has 2 per seed"):
        read(SMALL | {"rows": rows}, tmp_path)


def test_a_missing_file_is_answered_with_the_one_that_is_there() -> None:
    with pytest.raises(UserError, match="did you mean 'recipes/compare.yaml'"):
        read_comparison(["recipes/comparison.yaml"])


def test_a_misspelt_override_is_told_from_a_setting_of_the_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'seeds'.*has a dot in its key"):
        read(SMALL, tmp_path, "seed=1")
