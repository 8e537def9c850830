"""The file of a space's latencies."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mdl.errors import UserError
from mdl.space.latency import LatencyTable
from mdl.space.search_space import ZERO, SearchSpace

FIXED, PER_CLASS = 0.5, 0.001


def table(space: SearchSpace) -> LatencyTable:
    """Every block takes as many hundredths of a millisecond as its number in its layer, from 1."""
    blocks = tuple(
        {block: 0.0 if block == ZERO else at / 100 for at, block in enumerate(of.blocks, 1)}
        for of in space.layers
    )
    return LatencyTable(space, "executorch", 16, FIXED, PER_CLASS, blocks, {"threads": 1})


def test_what_was_written_is_read_back(space: SearchSpace, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(table(space).dumps())
    assert LatencyTable.read(file) == table(space)


def test_a_path_takes_what_its_blocks_take(space: SearchSpace) -> None:
    path = space.uniform_path(space.blocks[1])
    found = table(space).path_milliseconds(path, classes=10)
    assert found == pytest.approx(FIXED + 10 * PER_CLASS + len(space.layers) * 0.02)


def test_a_table_of_another_space_runtime_or_size_is_refused(space: SearchSpace) -> None:
    of, sizes = table(space), {"birds": 16}
    of.check_fits("t.json", space, sizes, None)
    of.check_fits("t.json", space, sizes, "executorch")
    other = replace(space, head_width=99)
    with pytest.raises(UserError, match="another space: its space.head_width is 24"):
        of.check_fits("t.json", other, sizes, None)
    with pytest.raises(UserError, match="measured with executorch; search.latency.runtime is onnx"):
        of.check_fits("t.json", space, sizes, "onnx")
    with pytest.raises(UserError, match="images of 16 px; those of 'birds' have 32"):
        of.check_fits("t.json", space, {"birds": 32}, None)


def test_what_is_no_table_is_refused(space: SearchSpace, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    with pytest.raises(UserError, match="No latency table at"):
        LatencyTable.read(file)
    whole = table(space).dumps()
    first = str(space.blocks[0])
    for text in ("", "[]", whole[:-60], whole.replace(f'"{first}"', '"k9_e9"', 1)):
        file.write_text(text)
        with pytest.raises(UserError, match="is not a latency table"):
            LatencyTable.read(file)
    for wrong in ("-5.0", "NaN", "Infinity"):
        file.write_text(re.sub(rf'"{first}": [\d.]+', f'"{first}": {wrong}', whole))
        with pytest.raises(UserError, match="is not a latency table: ValueError: a block of"):
            LatencyTable.read(file)
    file.write_text(whole.replace('"format": 1', '"format": 7'))
    with pytest.raises(UserError, match="has format 7"):
        LatencyTable.read(file)
