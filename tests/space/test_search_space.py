import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.errors import UserError
from mdl.space.search_space import ZERO, Block, SearchSpace, Stage

stages = st.lists(
    st.builds(
        Stage,
        width=st.integers(1, 64),
        depth=st.integers(1, 4),
        stride=st.sampled_from([1, 2]),
        activation=st.sampled_from(["relu", "hardswish"]),
    ),
    min_size=1,
    max_size=4,
)


def spaces() -> st.SearchStrategy[SearchSpace]:
    return st.builds(
        SearchSpace,
        stem_width=st.integers(1, 32),
        stem_stride=st.sampled_from([1, 2]),
        stages=stages.map(tuple),
        head_width=st.integers(1, 64),
    )


@given(spaces())
def test_zero_is_offered_only_where_the_shape_is_kept(space: SearchSpace) -> None:
    for layer in space.layers:
        if layer.can_skip:
            assert layer.stride == 1
            assert layer.in_width == layer.width


@given(spaces())
def test_a_space_survives_its_table(space: SearchSpace) -> None:
    again = SearchSpace.from_table(space.table())
    assert again == space
    assert again.fingerprint == space.fingerprint


@given(spaces(), st.integers(0, 100))
def test_a_random_path_fits_its_space(space: SearchSpace, seed: int) -> None:
    space.check_path(space.random_path(random.Random(seed)), "one")


def test_fingerprints_tell_spaces_apart(space: SearchSpace) -> None:
    other = SearchSpace.from_table(space.table() | {"head_width": 25})
    assert other.fingerprint != space.fingerprint


def small(**changes: object) -> SearchSpace:
    row = {"width": 8, "depth": 2, "stride": 2, "activation": "relu", "skippable": None}
    stage = Stage(**(row | {k: v for k, v in changes.items() if k in row}))  # type: ignore[arg-type]
    others = {k: v for k, v in changes.items() if k not in row}
    values = {"stem_width": 8, "stem_stride": 2, "stages": (stage,), "head_width": 8} | others
    return SearchSpace(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, r"stages\[0\].width is 0; expected a positive number"),
        ({"width": -4}, r"stages\[0\].width is -4"),
        ({"depth": 0}, r"stages\[0\].depth is 0"),
        ({"stride": 3}, r"stages\[0\].stride is 3; expected 1 or 2"),
        ({"activation": "gelu"}, "'gelu'; expected one of relu, hardswish"),
        ({"skippable": 2}, "skippable is 2; expected 0 to 1: zero is possible only where a layer"),
        ({"kernels": (4,)}, "kernels holds 4; expected odd"),
        ({"kernels": (3, 3)}, "holds a value twice"),
        ({"expansions": (0,)}, "expansions is 0"),
        ({"stages": ()}, "at least one stage"),
    ],
)
def test_an_impossible_space_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_a_path_that_skips_where_the_shape_changes_is_refused(space: SearchSpace) -> None:
    path = space.uniform_path(ZERO)
    with pytest.raises(UserError, match=r"'birds' takes 'zero' at layer 1\.1; that layer offers"):
        space.check_path(path, "birds")


def test_a_path_of_another_length_is_refused(space: SearchSpace) -> None:
    with pytest.raises(UserError, match="has 1 layers; the space has 4"):
        space.check_path((Block(3, 2, False),), "birds")


@given(spaces(), st.floats(1, 5))
def test_a_widened_space_has_the_same_paths(space: SearchSpace, factor: float) -> None:
    widened = space.widened(factor)
    assert [layer.blocks for layer in widened.layers] == [layer.blocks for layer in space.layers]
    for before, after in zip(space.layers, widened.layers, strict=True):
        assert abs(after.width - factor * before.width) <= 0.5
        assert after.stride == before.stride
    assert abs(widened.head_width - factor * space.head_width) <= 0.5
    assert space.widened(1.0) == space
