import json
import random
from pathlib import Path

import pytest

from mdl.errors import UserError
from mdl.space.architecture import Architecture, similarity
from mdl.space.search_space import ZERO, Block, SearchSpace


@pytest.fixture
def architecture(space: SearchSpace) -> Architecture:
    generator = random.Random(1)
    paths = {name: space.random_path(generator) for name in ("birds", "cars")}
    return Architecture(space, paths, {"run": "mine", "step": 7})


def test_an_architecture_survives_its_file(architecture: Architecture, tmp_path: Path) -> None:
    architecture.write(tmp_path / "a.json")
    assert Architecture.read(tmp_path / "a.json") == architecture


def test_the_file_names_choices_per_domain_and_layer(
    architecture: Architecture, tmp_path: Path
) -> None:
    architecture.write(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["space_fingerprint"] == architecture.space.fingerprint
    named = content["paths"]["birds"]
    assert list(named) == [layer.name for layer in architecture.space.layers]
    first = architecture.paths["birds"][0]
    assert named["1.1"] == {
        "kernel": first.kernel,
        "expansion": first.expansion,
        "squeeze_excite": first.squeeze_excite,
    }


def test_a_file_of_another_space_is_refused_with_the_first_difference(
    architecture: Architecture,
) -> None:
    table = architecture.space.table()
    table["stages"][1]["width"] = 20
    other = SearchSpace.from_table(table)
    with pytest.raises(UserError, match=r"space.stages\[1\].width is 16, the recipe's is 20"):
        architecture.check_fits(other, ["birds", "cars"])


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (["birds", "cars", "dogs"], "no path for domain 'dogs'"),
        (["birds"], "a path for domain 'cars', which the data lack"),
    ],
)
def test_a_file_for_other_domains_is_refused(
    architecture: Architecture, domains: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        architecture.check_fits(architecture.space, domains)


def test_an_edited_or_foreign_file_is_refused(architecture: Architecture, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(UserError, match="No architecture file at"):
        Architecture.read(file)
    file.write_text("{}")
    with pytest.raises(UserError, match="is not an architecture file"):
        Architecture.read(file)
    architecture.write(file)
    file.write_text(file.read_text().replace('"head_width": 24', '"head_width": 32'))
    with pytest.raises(UserError, match="was edited"):
        Architecture.read(file)
    architecture.write(file)
    file.write_text(file.read_text().replace('"kernel": 3', '"kernel": 9'))
    with pytest.raises(UserError, match="takes 'k9"):
        Architecture.read(file)


def test_similarity_is_symmetric_one_on_the_diagonal_and_blind_to_zero() -> None:
    a, b = Block(3, 2, False), Block(5, 2, False)
    scores = similarity({"x": (a, ZERO, a), "y": (a, ZERO, b), "z": (ZERO, ZERO, ZERO)})
    assert scores[0][1] == scores[1][0] == pytest.approx(1 / 3)
    assert [scores[i][i] for i in range(3)] == [1, 1, 1]  # two empty sets count as equal
    assert scores[0][2] == 0


def test_a_common_path_is_that_of_all_domains_or_refused(space: SearchSpace) -> None:
    generator = random.Random(0)
    one, other = space.random_path(generator), space.random_path(generator)
    assert Architecture(space, {"birds": one, "cars": one}).common_path() == one
    with pytest.raises(UserError, match="leads 'birds' and 'types' along different paths"):
        Architecture(space, {"birds": one, "cars": one, "types": other}).common_path()
