"""The folder of a comparison, where it is damaged or another's."""

from pathlib import Path

import pytest

from mdl.comparison.comparison_folder import ComparisonFolder
from mdl.errors import UserError


@pytest.mark.parametrize("content", ["", "[]", '{"rows": '])
def test_a_damaged_record_is_told(tmp_path: Path, content: str) -> None:
    folder = ComparisonFolder(tmp_path)
    folder.record_file.write_text(content)
    with pytest.raises(UserError, match="cannot be read as a comparison's record: .* Restore it"):
        folder.record()


def test_the_folder_of_a_run_is_no_comparison_s(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with (
        pytest.raises(UserError, match=r"is the folder of a run; .* Choose another with name="),
        ComparisonFolder(tmp_path).claimed(),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
