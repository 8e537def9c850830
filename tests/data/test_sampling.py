"""How many images each domain gives to a step."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdl.data.sampling import batch_sizes, check_sampling, shards_in_window
from mdl.errors import UserError

SIZES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.integers(1, 10**6), min_size=1, max_size=12
)
BATCH = st.integers(2, 256)


@given(SIZES, BATCH)
def test_balanced_batches_have_the_same_size(images: dict[str, int], size: int) -> None:
    assert set(batch_sizes(images, size).values()) == {size}


@given(SIZES, BATCH, st.one_of(st.just("proportional"), st.floats(1, 50)))
def test_no_domain_gives_fewer_than_a_part_and_all_together_give_what_balanced_ones_would(
    images: dict[str, int], size: int, sampling: str | float
) -> None:
    part = max(size // 4, 4)
    found = batch_sizes(images, size, sampling)
    assert min(found.values()) >= part
    assert all(value % part == 0 for value in found.values())
    assert abs(sum(found.values()) - size * len(images)) <= part * len(images)


@given(SIZES, BATCH, st.floats(1, 50))
def test_a_larger_domain_never_gives_fewer_images(
    images: dict[str, int], size: int, temperature: float
) -> None:
    found = batch_sizes(images, size, temperature)
    ordered = sorted(images, key=lambda name: images[name])
    counts = [found[name] for name in ordered]
    part = max(size // 4, 4)
    assert all(a <= b + part for a, b in pairwise(counts))
    if len(set(images.values())) == len(images):
        assert counts == sorted(counts)


def test_a_temperature_lies_between_proportional_and_balanced() -> None:
    images = {"small": 1_000, "large": 64_000}
    shares = [
        batch_sizes(images, 512, sampling)["large"]
        for sampling in ("balanced", 100.0, 2.0, "proportional")
    ]
    assert shares == sorted(shares)
    assert batch_sizes(images, 512, 2.0)["large"] == pytest.approx(1024 * 8 / 9, abs=128)
    assert batch_sizes(images, 512, 1.0) == batch_sizes(images, 512, "proportional")


@pytest.mark.parametrize("sampling", ["fair", 0.5, True, None, [1]])
def test_another_sampling_is_refused(sampling: object) -> None:
    with pytest.raises(UserError, match="expected balanced, proportional, or a temperature"):
        check_sampling(sampling)


SHARDS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.lists(st.integers(1, 100), min_size=1, max_size=20),
    min_size=1,
    max_size=6,
)


@given(SHARDS, st.integers(1, 5000), st.integers(1, 2))
def test_windows_fit_the_cache(shards: dict[str, list[int]], limit: int, streams: int) -> None:
    windows = shards_in_window(shards, limit, streams)
    open_at_once = 0
    for name, sizes in shards.items():
        window = windows[name]
        open_at_once += (
            sum(sizes) if window is None else min(2 * streams * window * max(sizes), sum(sizes))
        )
    smallest = sum(2 * streams * max(sizes) for sizes in shards.values())
    assert open_at_once <= max(limit, smallest)
    if sum(map(sum, shards.values())) <= limit:
        assert set(windows.values()) == {None}
