import random
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from mdl.networks.multipath import path_users, supernet_users
from mdl.results.lanes import domain_lines, map_sizes
from mdl.results.path_map import node_kinds, path_map_figure
from mdl.results.styles import shortened
from mdl.space.search_space import Path, SearchSpace, Stage


def alike_paths(space: SearchSpace, num_domains: int) -> dict[str, Path]:
    """Paths that agree at most layers, of domains with names of twenty characters."""
    generator = random.Random(num_domains)
    common = space.random_path(generator)
    return {
        f"domain_{place:02}_long_name": tuple(
            block if generator.random() < 0.7 else generator.choice(layer.blocks)
            for block, layer in zip(common, space.layers, strict=True)
        )
        for place in range(num_domains)
    }


def large_space() -> SearchSpace:
    stages = (Stage(24, 10, 2, "relu"), Stage(40, 10, 2, "hardswish"))
    return SearchSpace(16, 2, stages, 64)


def drawn(figure: Figure, gid: str) -> list[tuple[float, float]]:
    """Where the map shows nodes of a kind."""
    (axes,) = figure.axes
    found = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_gid() == gid]
    return [tuple(point) for of in found for point in np.asarray(of.get_offsets()).tolist()]


def test_every_shared_node_is_drawn_once_with_its_number_of_domains(space: SearchSpace) -> None:
    paths = alike_paths(space, 6)
    figure = path_map_figure(space, paths)
    numbers = [len(of) for of in path_users(space, paths).values() if len(of) > 1]
    places = drawn(figure, "shared")
    assert len(set(places)) == len(places) == len(numbers)
    written = [int(text.get_text()) for text in figure.axes[0].texts if text.get_text().isdigit()]
    assert sorted(written) == sorted(numbers)


@pytest.mark.parametrize("num_domains", [1, 2, 20])
def test_every_node_of_the_space_is_drawn_once(space: SearchSpace, num_domains: int) -> None:
    paths = alike_paths(space, num_domains)
    kinds, figure = node_kinds(space, paths), path_map_figure(space, paths)
    places = [drawn(figure, kind) for kind in ("shared", "specific", "unused")]
    assert [len(of) for of in places] == [len(kinds.shared), len(kinds.specific), len(kinds.unused)]
    assert len({place for of in places for place in of}) == len(supernet_users(space, ["any"]))


def test_a_single_domain_shares_nothing(space: SearchSpace) -> None:
    assert node_kinds(space, alike_paths(space, 1)).shared == {}


def test_no_two_lines_run_into_each_other_at_a_node(space: SearchSpace) -> None:
    paths: Mapping[str, Path] = alike_paths(space, 20)
    lines = domain_lines(space, paths, map_sizes(len(paths)))
    for passings in zip(*lines.values(), strict=True):
        assert len({passing.point for passing in passings}) == len(paths)
        assert all(abs(passing.lane) < 0.5 for passing in passings)


def test_long_names_leave_their_beginning_and_their_end(space: SearchSpace) -> None:
    (path,) = alike_paths(space, 1).values()
    names = [f"photographs-of-the-year-{year}" for year in range(2001, 2004)]
    figure = path_map_figure(space, dict.fromkeys(names, path))
    drawn = {text.get_text() for text in figure.axes[0].texts}
    assert {"photographs-o…-year-2001", "photographs-o…-year-2003"} <= drawn
    assert shortened(["inria_person"]) == {"inria_person": "inria_person"}
    alike = [f"{name}-in-colour" for name in names]  # these would be one
    assert list(shortened(alike).values()) == alike


@pytest.mark.parametrize("num_domains", [1, 10, 20])
def test_no_label_of_a_large_map_overlaps_another_or_is_cut_off(num_domains: int) -> None:
    figure = path_map_figure(large_space(), alike_paths(large_space(), num_domains))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [label.get_window_extent() for label in labels]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)
