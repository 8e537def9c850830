import random

import pytest
import torch

from mdl.networks.cost import CostTable, macs_of_all_domains, macs_of_one_image
from mdl.space.search_space import ZERO, Path, SearchSpace

CLASSES = {"birds": 3, "cars": 40}


def hand_counted(space: SearchSpace, path: Path, size: int, classes: int) -> int:
    """Multiply-adds of the convolutions and the head, layer by layer."""
    size = -(-size // space.stem_stride)
    total = 27 * space.stem_width * size**2
    for layer, block in zip(space.layers, path, strict=True):
        if block == ZERO:
            continue
        width = layer.in_width * block.expansion
        total += layer.in_width * width * size**2
        size = -(-size // layer.stride)
        total += width * block.kernel**2 * size**2
        if block.squeeze_excite:
            total += 2 * width * max(round(width / 4 / 8) * 8, 8)
        total += width * layer.width * size**2
    total += space.stages[-1].width * space.head_width * size**2
    return total + space.head_width * classes


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [8, 12, 15])
def test_multiply_adds_equal_those_counted_by_hand(
    space: SearchSpace, seed: int, size: int
) -> None:
    path = space.random_path(random.Random(seed))
    table = CostTable(space, size, CLASSES)
    assert table.path_macs(path, "cars") == hand_counted(space, path, size, 40)


def test_the_table_of_choices_sums_to_a_paths_cost(space: SearchSpace) -> None:
    table = CostTable(space, 8, CLASSES)
    path = space.random_path(random.Random(0))
    chosen = [la.blocks.index(b) for la, b in zip(space.layers, path, strict=True)]
    total = sum(table.choices()[0, i, c].item() for i, c in enumerate(chosen))
    assert total + table.fixed()[0].item() == table.path_macs(path, "birds")


def test_the_mean_path_is_the_mean_of_all_paths(space: SearchSpace) -> None:
    table, generator = CostTable(space, 8, CLASSES), random.Random(0)
    drawn = [table.path_macs(space.random_path(generator), "birds") for _ in range(3000)]
    assert table.mean_path_macs()[0].item() == pytest.approx(sum(drawn) / 3000, rel=0.02)


def test_one_image_through_equal_paths_costs_one_path_where_batch_norm_is_shared(
    space: SearchSpace,
) -> None:
    table = CostTable(space, 8, CLASSES)
    path = space.random_path(random.Random(0))
    paths = {"birds": path, "cars": path}
    total = macs_of_all_domains(paths, table)
    assert macs_of_one_image(paths, table, shared_batch_norm=False) == total
    once = macs_of_one_image(paths, table, shared_batch_norm=True)
    assert once == table.path_macs(path, "birds") + table.heads["cars"]


def test_work_after_paths_part_is_not_common(space: SearchSpace) -> None:
    table = CostTable(space, 8, CLASSES)
    a = tuple(layer.blocks[0] for layer in space.layers)
    b = (space.layers[0].blocks[1], *a[1:])
    once = macs_of_one_image({"birds": a, "cars": b}, table, shared_batch_norm=True)
    stem = hand_counted(space, a, 8, 0) - table.choices()[0, range(4), [0] * 4].sum().item()
    head = 16 * space.head_width * 2 * 2
    both = table.path_macs(a, "birds") + table.path_macs(b, "cars")
    assert once == both - (stem - head)


def test_each_domain_costs_what_its_own_image_size_does(space: SearchSpace) -> None:
    path = space.random_path(random.Random(3))
    mixed = CostTable(space, {"birds": 8, "cars": 16}, CLASSES)
    for domain, size in mixed.image_size.items():
        alone = CostTable(space, size, CLASSES)
        assert mixed.path_macs(path, domain) == alone.path_macs(path, domain)
    row = list(CLASSES).index("cars")
    alone = CostTable(space, 16, CLASSES)
    assert torch.equal(mixed.choices()[row], alone.choices()[row])
    assert mixed.mean_path_macs()[row] == alone.mean_path_macs()[row]
