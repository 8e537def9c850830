from itertools import combinations

from mdl.networks.multipath import path_nodes
from mdl.results.pair_picture import extreme_pairs, pair_figure
from mdl.space.search_space import ZERO, Block, Path, SearchSpace

SMALL, LARGE = Block(3, 2, False), Block(5, 2, False)
PATHS: dict[str, Path] = {
    "birds": (SMALL, ZERO, SMALL, LARGE),
    "cars": (SMALL, SMALL, LARGE, LARGE),
    "types": (LARGE, LARGE, LARGE, SMALL),
}


def test_shared_blocks_are_drawn_once_and_own_ones_apart(space: SearchSpace) -> None:
    figure = pair_figure(space, PATHS, "birds", "cars")
    boxes = [patch.get_gid() for patch in figure.axes[0].patches if patch.get_gid()]
    birds, cars = (set(path_nodes(space, PATHS[domain])) for domain in ("birds", "cars"))
    assert boxes.count("shared") == len(birds & cars) == 4  # stem and head convolution too
    assert boxes.count("own") == len(birds ^ cars) == 3


def test_no_heading_lies_over_another(space: SearchSpace) -> None:
    for names in (("birds", "cars"), ("a" * 14, "b" * 14), ("a" * 40, "b" * 38)):
        paths = dict(zip(names, PATHS.values(), strict=False))
        figure = pair_figure(space, paths, *names)
        figure.draw_without_rendering()
        headings = [text for text in figure.axes[0].texts if text.get_weight() == "bold"]
        assert {text.get_text() for text in headings} == {*names, "shared"}
        boxes = [text.get_window_extent() for text in [*headings, figure.axes[0].title]]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_most_and_the_least_alike_pairs_are_of_different_domains() -> None:
    assert extreme_pairs(PATHS) == [("birds", "cars"), ("birds", "types")]


def test_two_domains_make_one_pair_and_one_domain_none() -> None:
    two = {domain: PATHS[domain] for domain in ("birds", "cars")}
    assert extreme_pairs(two) == [("birds", "cars")]
    assert extreme_pairs({"birds": PATHS["birds"]}) == []
