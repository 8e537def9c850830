import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from mdl.results.figures import accuracy_figure, curves_figure, similarity_figure
from mdl.results.styles import domain_styles, render
from mdl.space.search_space import Block, SearchSpace

NAMES = [f"domain_{place}" for place in range(10)]


def luminance(colour: object) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_seventy_domains_look_different() -> None:
    styles = domain_styles(map(str, range(70))).values()
    assert len({(style.colour, style.marker) for style in styles}) == 70


def test_ten_domains_differ_without_colour() -> None:
    assert len({style.marker for style in domain_styles(NAMES).values()}) == 10


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_equal_data_give_equal_files(kind: str) -> None:
    series = {"birds": [(1.0, 2.0), (2.0, 1.0)], "mean": [(1.0, 2.0), (2.0, 1.0)]}
    files = {render(curves_figure(series, ["birds"], "loss"), kind) for _ in range(2)}
    assert len(files) == 1


def test_a_figure_renders_the_same_twice() -> None:
    figure = curves_figure({"birds": [(1.0, 2.0)]}, ["birds"], "loss")
    assert render(figure, "svg") == render(figure, "svg")


def test_numbers_are_readable_on_every_cell(space: SearchSpace) -> None:
    small, large = Block(3, 2, False), Block(5, 2, False)
    paths = {str(n): (small,) * n + (large,) * (4 - n) for n in range(5)}
    for text in similarity_figure(paths).axes[0].texts:
        cell = luminance(colormaps["Blues"](float(text.get_text()))[:3])
        ink = luminance(text.get_color())
        assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) > 4


def test_a_domain_that_a_run_lacks_has_a_dash_for_a_bar() -> None:
    accuracy = {"test": {"one": {"birds": 0.5, "cars": 0.25}, "other": {"cars": 0.75}}}
    figure = accuracy_figure(accuracy, {"birds": 0.5, "cars": 0.1})
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["50.0", "25.0", "37.5", "-", "75.0", "75.0"]


def test_many_records_are_averaged_and_the_axis_says_so() -> None:
    series = {"birds": [(float(step), float(step % 2)) for step in range(1, 121)]}
    (axes,) = curves_figure(series, ["birds"], "loss").axes
    (line,) = axes.lines
    assert list(line.get_ydata()) == [0.5] * 60
    assert "mean of 2 records" in axes.get_xlabel()
