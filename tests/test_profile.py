"""Profiles of a space, and searches for a latency, whole."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mdl import fit, profile
from mdl.device.profiling import Predicted
from mdl.errors import UserError
from mdl.networks.parameters import ParameterTable
from mdl.space.architecture import Architecture
from mdl.space.latency import LatencyTable
from tests.test_fit import SEARCH, metrics, run_of

WORDS = ["--repeats", "20", "--checked", "2", "--fitted", "2"]


@pytest.fixture
def table(small_run: list[str], tmp_path: Path) -> Path:
    """Measured, then made certain: a block takes as long as its kernel is wide."""
    file = tmp_path / "table.json"
    profile.main([SEARCH, *small_run, "--runtime", "eager-cpu", "--out", str(file), *WORDS])
    content = json.loads(file.read_text())
    ms = content["milliseconds"]
    ms["fixed"], ms["per_class"] = 1.0, 0.0
    for of in ms["layers"].values():
        for name in of:
            of[name] = 0.0 if name == "zero" else int(name[1]) / 10
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("runtime", ["eager-cpu", "executorch", "onnx"])
def test_every_block_of_a_space_is_measured(
    small_run: list[str], tmp_path: Path, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if runtime != "eager-cpu" and find_spec("executorch") is None:
        pytest.skip("needs the optional packages of '.[device]'")
    file = tmp_path / "table.json"
    profile.main([SEARCH, *small_run, "--runtime", runtime, "--out", str(file), *WORDS])
    table = LatencyTable.read(file)
    assert (table.runtime, table.image_size) == (runtime, 12)
    assert table.fixed > 0
    assert all(min(of.values()) == 0 < max(of.values()) for of in table.blocks)
    assert len(table.source["random_paths"]) == 2
    assert "of 2 random paths" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("executorch") is None, reason="needs executorch")
def test_executorch_is_measured_on_as_many_threads_as_asked_for(
    small_run: list[str], tmp_path: Path
) -> None:
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count

    for threads in (2, 1):
        words = [*WORDS, "--runtime", "executorch", "--threads", str(threads)]
        profile.main([SEARCH, *small_run, "--out", str(tmp_path / "table.json"), *words])
        assert _threadpool_get_thread_count() == threads


def test_a_search_for_a_latency_ends_within_its_budget(small_run: list[str], table: Path) -> None:
    words = ["search.cost=latency", f"search.latency.file={table}", "search.latency.budget=1.65"]
    fit.main([SEARCH, *small_run, *words])
    run = run_of(small_run, "mpnas_search")
    found = Architecture.read(run / "architecture.json")
    measured = LatencyTable.read(table)
    for path in found.paths.values():
        assert measured.path_milliseconds(path, 3) <= 1.65 * 1.02
    assert "search/milliseconds/birds" in metrics(run)[-1]


def test_a_latency_and_a_size_are_searched_together(small_run: list[str], table: Path) -> None:
    measured = LatencyTable.read(table)
    space, classes = measured.space, {"birds": 3, "cars": 4, "types": 2}
    parameters = ParameterTable(space, classes, "per_domain")
    wanted = parameters.count(dict.fromkeys(classes, space.uniform_path(space.blocks[1]))).total
    words = ["search.cost=latency", f"search.latency.file={table}", "search.latency.budget=1.85"]
    fit.main([SEARCH, *small_run, *words, f"search.target.params={wanted}", "name=joint"])
    found = Architecture.read(run_of(small_run, "joint") / "architecture.json")
    assert max(measured.path_milliseconds(of, 3) for of in found.paths.values()) <= 1.85 * 1.02
    assert parameters.count(found.paths).total == pytest.approx(wanted, rel=0.05)


def test_each_domain_may_have_a_budget_of_its_own(small_run: list[str], table: Path) -> None:
    words = ["search.cost=latency", f"search.latency.file={table}"]
    budget = "search.latency.budget={birds: 1.35, cars: 9, types: 9}"
    fit.main([SEARCH, *small_run, *words, budget])
    found = Architecture.read(run_of(small_run, "mpnas_search") / "architecture.json")
    assert LatencyTable.read(table).path_milliseconds(found.paths["birds"], 3) <= 1.35 * 1.02


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search.latency.budget=0.2"], "No path of '.*' within its budget"),
        (["search.latency.budget=1", "search.latency.runtime=onnx"], "measured with eager-cpu"),
        (["search.latency.budget=1", "data.image_size=10"], "images of 12 px"),
        (["search.latency.budget=1", "space.head_width=17"], "is of another space"),
        (["search.latency.budget={birds: 1}"], "expected milliseconds for each. Mend 'cars'"),
        (["search.latency.budget=0"], "expected milliseconds above 0"),
        (["search.latency.budget=fast"], "expected milliseconds above 0"),
        (["search.latency.budget=1", "search.target.macs=1e6"], "expected one of the two"),
        (["search.latency.budget=1", "search.cost=macs"], "but search.cost is macs"),
        (["search.latency.budget=1", "search.latency.file=null"], "search.latency.file is null"),
        (["search.latency.budget=1", "search.latency.file=no.json"], "No latency table at no.json"),
    ],
)
def test_what_does_not_fit_is_refused(
    small_run: list[str], table: Path, words: list[str], said: str
) -> None:
    start = ["search.cost=latency", f"search.latency.file={table}"]
    with pytest.raises(UserError, match=said):
        fit.main([SEARCH, *small_run, *start, *words])
    assert not run_of(small_run, "mpnas_search").exists()


def test_a_table_that_could_not_be_written_is_told_before_anything_is_measured(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "profile", lambda *_: pytest.fail("it measured"))
    (tmp_path / "file").write_text("")
    for out, told in ((tmp_path, "a folder; expected the name"), (tmp_path / "file/x", "written")):
        with pytest.raises(UserError, match=told):
            profile.main([SEARCH, *small_run, "--runtime", "eager-cpu", "--out", str(out), *WORDS])


def test_a_table_that_predicts_badly_is_told() -> None:
    good = [Predicted(1.0, 1.05)] * 9 + [Predicted(1.0, 2.0)]
    assert profile.doubts(good) == ""
    assert "4 of 10 paths take another time" in profile.doubts([*good[3:], *good[-1:] * 3])
    assert profile.doubts([]) == ""
