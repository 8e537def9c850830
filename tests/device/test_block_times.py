"""From what whole paths take to what their blocks add."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.device.block_times import Timed, block_times, changed_paths
from mdl.space.latency import LatencyTable
from mdl.space.search_space import ZERO, Block, Path, SearchSpace, Stage

SPACE = SearchSpace(
    stem_width=8,
    stem_stride=1,
    stages=(Stage(8, 2, 2, "relu"), Stage(16, 3, 2, "hardswish"), Stage(24, 4, 2, "hardswish")),
    head_width=24,
    kernels=(3, 5),
)
FIXED = 0.2

Device = Callable[[Path], float]


def weight(block: Block, stage: str) -> float:
    if block == ZERO:
        return 0.0
    return (block.kernel + 2 * block.expansion + block.squeeze_excite) * int(stage) / 100


def adding(path: Path) -> float:
    """A device on which blocks' times add up."""
    blocks = zip(path, SPACE.layers, strict=True)
    return FIXED + sum(weight(block, layer.name[0]) for block, layer in blocks)


def with_a_cache(path: Path) -> float:
    """A device on which what does not fit the cache takes four times as long."""
    work = adding(path)
    return work + 3 * max(work - 3.1, 0.0)


def drawn(count: int, seed: int) -> list[Path]:
    generator = random.Random(seed)
    return [SPACE.random_path(generator) for _ in range(count)]


def timed(device: Device, paths: list[Path]) -> Timed:
    return [(path, device(path)) for path in paths]


def table(device: Device, fitted: int) -> LatencyTable:
    changed = timed(device, changed_paths(SPACE))
    fixed, blocks = block_times(SPACE, changed, timed(device, drawn(fitted, seed=1)))
    return LatencyTable(SPACE, "executorch", 16, fixed, 0.0, blocks)


def num_near(device: Device, of: LatencyTable, paths: list[Path]) -> int:
    return sum(abs(of.path_milliseconds(path, 9) / device(path) - 1) <= 0.1 for path in paths)


def test_paths_differ_from_the_first_in_one_block_of_each_shape_of_layer() -> None:
    reference, *others = changed_paths(SPACE)
    assert reference == SPACE.uniform_path(SPACE.reference_block)
    found = set()
    for path in others:
        SPACE.check_path(path, "changed")
        (at,) = (at for at, block in enumerate(path) if block != reference[at])
        found.add((SPACE.layers[at].name, path[at]))
    # 2.3, 3.3 and 3.4 are as the layers before them
    of = {layer.name: layer.blocks for layer in SPACE.layers}
    names = ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    expected = {(name, block) for name in names for block in of[name]}
    assert found == {one for one in expected if one[1] != SPACE.reference_block}


@pytest.mark.parametrize("fitted", [0, 1, 40])
def test_where_times_add_up_every_path_takes_what_the_table_says(fitted: int) -> None:
    found = table(adding, fitted)
    for path in drawn(50, seed=2):
        assert found.path_milliseconds(path, 9) == pytest.approx(adding(path))


def test_where_they_do_not_random_paths_mend_the_table() -> None:
    paths = drawn(100, seed=2)
    assert num_near(with_a_cache, table(with_a_cache, fitted=0), paths) < 50
    assert num_near(with_a_cache, table(with_a_cache, fitted=40), paths) > 85


@given(st.integers(0, 2**32), st.integers(0, 5))
def test_whatever_is_measured_the_table_is_one_that_can_be_read(seed: int, fitted: int) -> None:
    generator = random.Random(seed)
    found = table(lambda _: generator.uniform(0.1, 9), fitted)
    assert all(min(of.values()) == 0 for of in found.blocks)
    same = {layer.name: of for layer, of in zip(SPACE.layers, found.blocks, strict=True)}
    assert same["3.2"] == same["3.3"] == same["3.4"]
