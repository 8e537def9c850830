import json
import re
from pathlib import Path
from typing import Any

import pytest

from mdl.comparison.comparison_folder import ComparisonFolder
from mdl.comparison.plan import Job
from mdl.errors import UserError
from mdl.report import main
from mdl.results.compared import Compared
from mdl.results.comparison_page import chance_remarks, trade_off_pictures
from mdl.results.comparison_tables import (
    accuracy_table,
    cost_table,
    domain_tables,
    transfer_tables,
    tries_table,
)
from tests.conftest import SMALL_SPACE
from tests.made_comparison import Scores, make_comparison

DOMAINS = {"birds": 3, "cars": 4, "types": 2}

CONTENT: dict[str, Any] = {
    "name": "made",
    "seeds": [0, 1, 2],
    "settings": [*SMALL_SPACE, "data.image_size=16", "trainer.max_steps=20"],
    "baseline": "bundle",
    "reference": "common",
    "main": "found",
    "runs": {
        "a_search": {},
        "small_search": {"settings": ["search.sharing=0.1"], "search": "a_search"},
    },
    "rows": {
        "found": {"label": "searched", "search": "a_search"},
        "bundle": {"search": "a_search", "settings": ["network.nodes=private"]},
        "common": {"settings": ["retrain.paths=common"]},
    },
    "figures": {"bars": [["found", "bundle", "common"]]},
}

# row -> seed -> top-1 of every domain
LEVELS = {
    "found": (0.62, 0.66, 0.70),
    "bundle": (0.50, 0.60, 0.61),
    "common": (0.40, 0.40, 0.40),
    "small": (0.30, 0.30, 0.30),
}


def by_level(job: Job) -> dict[str, float]:
    return dict.fromkeys(DOMAINS, LEVELS[job.entry][job.seed])


def made(tmp_path: Path, scores: Scores = by_level, **change: Any) -> ComparisonFolder:
    unfinished = change.pop("unfinished", ())
    content = CONTENT | change
    return make_comparison(content, tmp_path, DOMAINS, scores, unfinished)


def cells(table: Any, name: str) -> dict[str, str]:
    (row,) = (row for row in table.rows if row[0] == name)
    return dict(zip(table.columns, row, strict=True))


def test_the_table_holds_what_a_hand_computes(tmp_path: Path) -> None:
    table = accuracy_table(Compared.read(made(tmp_path)))
    found, bundle = cells(table, "searched"), cells(table, "bundle")
    assert found["test top-1, %"] == "66.0 ± 4.0"
    assert bundle["test top-1, %"] == "57.0 ± 6.1"
    # 12, 6 and 9 points: mean 9, deviation 3, half width 4.303 * 3 / sqrt 3 = 7.45
    assert bundle["searched minus it"] == "+9.0 [+1.5, +16.5], n = 3"
    # 12 / 50, 6 / 60 and 9 / 61, the same for every domain
    assert found["multi-task delta, %"].startswith("+16.3 ± ")
    assert found["searched minus it"] == "" and bundle["multi-task delta, %"] == ""
    assert cells(table, "common")["parameters"] == "1.00x"
    assert cells(table, "common")["seeds"] == "3"


def test_transfer_is_told_per_domain_with_its_sign(tmp_path: Path) -> None:
    def scores(job: Job) -> dict[str, float]:
        levels = dict.fromkeys(DOMAINS, 0.5)
        return levels | {"birds": 0.6, "cars": 0.45} if job.entry == "found" else levels

    compared = Compared.read(made(tmp_path, scores))
    (levels,), (changes,) = domain_tables(compared), transfer_tables(compared)
    assert cells(levels, "birds")["searched"] == "60.0 ± 0.0"
    assert [cells(changes, domain)["searched"][:5] for domain in DOMAINS] == [
        "+10.0",
        "-5.0 ",
        "+0.0 ",
    ]
    assert "bundle" not in changes.columns


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    table = accuracy_table(Compared.read(made(tmp_path, seeds=[1])))
    assert cells(table, "bundle")["searched minus it"] == "+6.0 (one seed)"
    assert cells(table, "bundle")["test top-1, %"] == "60.0"


def test_draws_are_averaged_within_their_seed(tmp_path: Path) -> None:
    rows = CONTENT["rows"] | {"common": {"settings": ["retrain.paths=common"], "draws": 2}}

    def scores(job: Job) -> dict[str, float]:
        return dict.fromkeys(DOMAINS, LEVELS[job.entry][job.seed] + 0.2 * job.draw)

    row = cells(accuracy_table(Compared.read(made(tmp_path, scores, rows=rows))), "common")
    assert row["test top-1, %"] == "50.0 ± 0.0" and row["seeds"] == "3"


def test_a_row_s_time_is_that_of_all_that_it_needs(tmp_path: Path) -> None:
    rows = CONTENT["rows"] | {"small": {"search": "small_search"}}
    table = cost_table(Compared.read(made(tmp_path, rows=rows)))
    assert cells(table, "searched")["search"] == "60 s"
    assert cells(table, "small")["search"] == "2 min"  # on the super-network of another
    assert cells(table, "common")["search"] == "-"
    assert cells(table, "small")["training"] == "60 s"


def test_parts_of_the_parameters_add_up(tmp_path: Path) -> None:
    for row in cost_table(Compared.read(made(tmp_path))).rows:
        total, *parts = (int(cell.replace(",", "")) for cell in row[2:6])
        assert sum(parts) == total


def test_an_unfinished_comparison_is_reported_with_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = {"found-seed2", *(f"bundle-seed{seed}" for seed in range(3))}
    folder = made(tmp_path, unfinished=unfinished)
    main([str(folder.path)])
    page = (folder.path / "report.md").read_text()
    assert (
        "Not finished: 4 of 12 runs: bundle-seed0, bundle-seed1, found-seed2, bundle-seed2" in page
    )
    assert "Without a finished run, and so not shown: bundle." in page
    assert "python -m mdl.compare" in capsys.readouterr().out
    row = cells(accuracy_table(Compared.read(folder)), "common")
    assert row["searched minus it"].endswith("n = 2")


def test_tries_are_told_by_validation_and_the_losers_test_scores_by_nothing(
    tmp_path: Path,
) -> None:
    rows = CONTENT["rows"] | {
        "found": {
            "label": "searched",
            "search": "a_search",
            "tries": [["trainer.timeout=1"], ["trainer.timeout=2"]],
        }
    }

    def scores(job: Job) -> dict[str, float]:
        return dict.fromkeys(DOMAINS, 0.1234 if job.attempt == 0 else 0.567)

    folder = made(tmp_path, scores, rows=rows)
    main([str(folder.path)])
    table = tries_table(Compared.read(folder))
    assert table is not None
    assert table.rows == [
        ["searched", "trainer.timeout=1", "22.3", ""],
        ["searched", "trainer.timeout=2", "66.7", "chosen"],
    ]
    accuracy = accuracy_table(Compared.read(folder))
    assert cells(accuracy, "searched")["test top-1, %"] == "56.7 ± 0.0"


def test_a_difference_is_over_the_domains_that_both_methods_have(tmp_path: Path) -> None:
    def scores(job: Job) -> dict[str, float]:
        if job.entry == "common":
            return {"birds": 0.9}
        return {"birds": 0.95, "cars": 0.4, "types": 0.5}

    compared = Compared.read(made(tmp_path, scores))
    difference = compared.difference(compared.rows["common"])
    assert difference is not None
    assert difference.mean == pytest.approx(0.05)
    assert "differences are over those that both have" in accuracy_table(compared).note


def test_a_row_whose_tries_are_not_compared_shows_no_test_score(tmp_path: Path) -> None:
    rows = CONTENT["rows"] | {"found": {"search": "a_search", "tries": [[], ["k.x=1"][:0]]}}
    folder = made(tmp_path, rows=rows, unfinished={"found-try2-seed0"})
    assert "found" not in Compared.read(folder).rows


def test_every_picture_is_a_file_that_the_page_shows(tmp_path: Path) -> None:
    folder = made(tmp_path)
    main([str(folder.path), "--pair", "cars", "types"])
    files = re.findall(r"\]\((\S+)\)", (folder.path / "report.md").read_text())
    names = [Path(file).stem for file in files]
    assert names == ["trade_off", "bars_1", "similarity", "path_map", "pair_cars_types"]
    assert all((folder.path / file).read_bytes().startswith(b"\x89PNG") for file in files)
    assert "<script" not in (folder.path / "report.html").read_text()


def test_rows_of_a_group_are_one_curve(tmp_path: Path) -> None:
    rows = {
        "found": {"label": "searched", "search": "a_search", "group": "by target"},
        "small": {"search": "small_search", "group": "by target"},
        "common": {"settings": ["retrain.paths=common"]},
    }
    change = {"rows": rows, "baseline": None, "figures": None}
    (picture,) = trade_off_pictures(Compared.read(made(tmp_path, **change)))
    curves = [line for line in picture.figure.axes[0].lines if line.get_linestyle() == "-"]
    assert sorted(len(line.get_xdata()) for line in curves) == [1, 2]
    assert [text.get_text() for text in picture.figure.legends[0].texts] == ["by target", "common"]


def test_one_domain_is_compared_too(tmp_path: Path) -> None:
    def scores(job: Job) -> dict[str, float]:
        return {"birds": LEVELS[job.entry][job.seed]}

    folder = make_comparison(CONTENT, tmp_path, {"birds": 3}, scores)
    main([str(folder.path)])
    assert "on 1 domain, 3 seeds" in (folder.path / "report.md").read_text()


def test_domains_at_chance_are_called_out_with_how_often(tmp_path: Path) -> None:
    def scores(job: Job) -> dict[str, float]:
        return dict.fromkeys(DOMAINS, 0.9) | {"cars": 0.25 if job.seed else 0.9}

    remarks = chance_remarks(Compared.read(made(tmp_path, scores)))
    assert remarks[0] == "searched is at chance (test) in some runs: cars (2 of 3)."


def test_nothing_finished_is_said_with_how_to_go_on(tmp_path: Path) -> None:
    every = {f"{row}-seed{seed}" for row in CONTENT["rows"] for seed in range(3)}
    folder = made(tmp_path, unfinished=every)
    with pytest.raises(UserError, match=r"no finished run of a row yet.*python -m mdl\.compare"):
        main([str(folder.path)])


def test_a_comparison_is_reported_by_itself(tmp_path: Path) -> None:
    folder = made(tmp_path)
    with pytest.raises(UserError, match="is a comparison, which is reported by itself"):
        main([str(folder.path), str(folder.run("found-seed0").path)])


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path)
    folder.record_file.write_text(json.dumps(folder.record() | {"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        main([str(folder.path)])


def test_test_images_are_reported_once_all_is_done(tmp_path: Path) -> None:
    """Before, they could choose what is still open."""
    assert Compared.read(made(tmp_path / "whole")).split == "test"
    part = made(tmp_path / "part", unfinished=("common-seed2",))
    assert Compared.read(part).split == "val"


def test_a_report_names_what_failed_and_where_the_reason_is(tmp_path: Path) -> None:
    folder = made(tmp_path, unfinished=["bundle-seed1"])
    folder.write_record(folder.record() | {"failed": {"bundle-seed1": 2}})
    (sentence,) = (of for of in Compared.read(folder).missing if "Not finished" in of)
    assert f"Failed, and why is told in {folder.path / 'logs'}: bundle-seed1. Go on" in sentence


def test_without_a_reference_there_is_no_ratio(tmp_path: Path) -> None:
    compared = Compared.read(made(tmp_path, reference=None))
    assert {cells(cost_table(compared), "common")["ratio"]} == {"-"}
    count = cells(cost_table(compared), "common")["parameters"]
    assert cells(accuracy_table(compared), "common")["parameters"] == count
