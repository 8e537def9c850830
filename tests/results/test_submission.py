"""The challenge's answer file."""

import json
import zipfile
from pathlib import Path

import pytest

from mdl.errors import UserError
from mdl.results.submission import Answers, check_answerable, write_submission
from tests.data.devkit_fixture import SMALL, shrink_the_published_table


@pytest.fixture(autouse=True)
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_the_published_table(monkeypatch)


def answers() -> dict[str, Answers]:
    return {
        domain.name: Answers(
            [number * 10_000_000 + 200_011 + i for i in range(domain.test)],
            [i % domain.classes for i in range(domain.test)],
        )
        for number, domain in enumerate(SMALL, 1)
    }


def test_every_image_is_answered_with_its_domains_category(tmp_path: Path) -> None:
    file = tmp_path / "results.zip"
    assert write_submission(file, answers()) == 40
    entries = json.loads(zipfile.ZipFile(file).read("results.json"))
    assert entries[0] == {"image_id": 10_200_011, "category_id": 10_000_001}
    assert entries[-1] == {"image_id": 100_200_014, "category_id": 100_000_001}
    assert all(e["image_id"] // 10**7 == e["category_id"] // 10**7 for e in entries)


def ids() -> dict[str, list[int]]:
    return {name: of.ids for name, of in answers().items()}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([-1, 1, 2, 3], "The test images of 'svhn' have no ids"),
        ([80_200_011] * 4, "Test image 80200011 of 'svhn' is there twice"),
        ([5, 6, 7, 8], "Test image 5 of 'svhn' is none of the published ones, 80200011 to"),
        ([80_200_011], "'svhn' has 1 test images, published are 4"),
    ],
)
def test_what_the_challenge_would_not_take_is_refused_before_anything_is_computed(
    tmp_path: Path, found: list[int], message: str
) -> None:
    check_answerable(ids(), tmp_path / "results.zip")
    with pytest.raises(UserError, match=message):
        check_answerable(ids() | {"svhn": found}, tmp_path / "results.zip")


def test_a_class_out_of_range_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    given = answers() | {"svhn": Answers([80_200_011], [3])}
    with pytest.raises(UserError, match="'svhn' was answered with class 3; expected 0 to 2"):
        write_submission(tmp_path / "results.zip", given)
    assert list(tmp_path.iterdir()) == []


def test_other_domains_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answers the ten domains of the Decathlon; .* birds"):
        check_answerable({"birds": [1]}, tmp_path / "results.zip")
    with pytest.raises(UserError, match="There is no folder"):
        check_answerable(ids(), tmp_path / "nowhere" / "results.zip")
    with pytest.raises(UserError, match="is a folder; expected the name of a zip file"):
        check_answerable(ids(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_can_be_answered_for_a_part(tmp_path: Path) -> None:
    check_answerable(ids() | {"svhn": [80_200_011]}, tmp_path / "results.zip", partial=True)
    given = answers() | {"svhn": Answers([80_200_011], [2])}
    assert write_submission(tmp_path / "results.zip", given) == 37
