"""The archives beside docs/results/comparison.md are of the comparisons that lie with them."""

import tarfile
from pathlib import Path

import pytest

from mdl.comparison.comparison_file import read_comparison
from mdl.comparison.runner import Runner

PROJECT = Path(__file__).parents[2]
PUBLISHED = PROJECT / "docs" / "results" / "comparison"


@pytest.mark.parametrize(
    ("archive", "recipe"),
    [("runs", "small_images"), ("sizes", "sizes")],
)
def test_a_published_comparison_goes_on_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str, recipe: str
) -> None:
    with tarfile.open(PUBLISHED / f"{archive}.tar.xz") as file:
        file.extractall(tmp_path / "runs", filter="data")
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)  # a run's files are named as from a checkout
    words = [str(PUBLISHED / f"{recipe}.yaml"), "seeds=[0]"]
    left = Runner(read_comparison([*words, "data.root=data/real"]), print, "").unfinished
    assert [job.name for job in left] == []
