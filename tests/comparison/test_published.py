"""The archives beside docs/results/comparison.md are of the comparisons that lie with them."""

import tarfile
from pathlib import Path

import pytest

from mdl.comparison.comparison_file import read_comparison
from mdl.comparison.runner import Runner

PROJECT = Path(__file__).parents[2]
PUBLISHED = PROJECT / "docs" / "results" / "comparison"
# of seeds 3 and 4; what their rows are compared with is made
LEFT = {
    f"{name}-seed{seed}"
    for seed in (3, 4)
    for name in ("common_final_38", "multi_head-try2", "single_path", "widened")
}


@pytest.mark.parametrize(
    ("archive", "recipe"),
    [("runs", "small_images"), ("sizes", "sizes"), ("mended", "mended"), ("runs", "five_seeds")],
)
def test_a_published_comparison_goes_on_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str, recipe: str
) -> None:
    with tarfile.open(PUBLISHED / f"{archive}.tar.xz") as file:
        file.extractall(tmp_path / "runs", filter="data")
    (tmp_path / "recipes").symlink_to(PROJECT / "recipes")
    monkeypatch.chdir(tmp_path)  # a run's files are named as from a checkout
    words = [str(PUBLISHED / f"{recipe}.yaml"), "data.root=data/real"]
    left = {job.name for job in Runner(read_comparison(words), print, "").unfinished}
    assert left == (LEFT if recipe == "five_seeds" else set())
