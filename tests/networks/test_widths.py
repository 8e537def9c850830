"""One common path of a wanted size."""

import random

import pytest

from mdl.errors import UserError
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.networks.widths import widened_to
from mdl.space.search_space import SearchSpace, Stage
from tests.networks.counted import count_parameters

CLASSES = {"birds": 3, "cars": 40, "types": 2}
WIDE = SearchSpace(
    16, 1, (Stage(24, 2, 2, "relu"), Stage(48, 3, 2, "hardswish")), 96, kernels=(3, 5)
)


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("times", [0.6, 1.0, 1.3, 3.7])
def test_the_network_of_a_widened_path_weighs_what_is_wanted(
    batch_norm: str, private: bool, times: float
) -> None:
    paths = dict.fromkeys(CLASSES, WIDE.random_path(random.Random(0)))

    def weigh(space: SearchSpace) -> int:
        users = path_users(space, paths, private)
        network = MultiPathNetwork(space, users, CLASSES, batch_norm=batch_norm)
        return count_parameters(network).total

    total = round(times * weigh(WIDE))
    widened = widened_to(total, WIDE, paths["birds"], CLASSES, batch_norm, private)
    assert weigh(widened) == pytest.approx(total, rel=0.02)
    if times == 1.0:
        assert widened == WIDE


def test_all_widths_grow_alike() -> None:
    widened = widened_to(
        1_000_000, WIDE, WIDE.uniform_path(WIDE.reference_block), CLASSES, "shared"
    )
    before = [WIDE.stem_width, *(stage.width for stage in WIDE.stages), WIDE.head_width]
    after = [widened.stem_width, *(stage.width for stage in widened.stages), widened.head_width]
    least = max((b - 0.5) / a for a, b in zip(before, after, strict=True))
    most = min((b + 0.5) / a for a, b in zip(before, after, strict=True))
    assert 1 < least <= most


def test_widths_too_small_to_hit_a_size_say_so() -> None:
    narrow = SearchSpace(2, 1, (Stage(2, 1, 2, "relu"),), 2)
    with pytest.raises(UserError, match=r"one common path 300 parameters within 2%; the nearest"):
        widened_to(300, narrow, narrow.uniform_path(narrow.reference_block), {"one": 2}, "shared")
