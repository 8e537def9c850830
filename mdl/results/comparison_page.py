"""The report of a comparison: its tables and figures on a page."""

from __future__ import annotations

from collections.abc import Sequence

from mdl.results.chance import at_chance
from mdl.results.compared import Compared, ComparedRow
from mdl.results.comparison_tables import (
    accuracy_table,
    cost_table,
    domain_tables,
    interval,
    method_table,
    transfer_tables,
    tries_table,
)
from mdl.results.figures import MEAN, accuracy_figure
from mdl.results.page import Page, Section
from mdl.results.picture import Picture
from mdl.results.pictures import map_picture, pair_pictures, similarity_picture
from mdl.results.provenance import origin_table, space_table
from mdl.results.run import Run
from mdl.results.statistics import Spread
from mdl.results.table import Table
from mdl.results.trade_off import Point, trade_off_figure


def build_comparison_page(compared: Compared, pair: tuple[str, str] | None) -> Page:
    """pair: two domains to show side by side; None for the most and the least alike."""
    first = first_run(compared)
    sections = [
        Section(
            "Methods compared",
            [*compared.missing, *chance_remarks(compared)],
            trade_off_pictures(compared),
            [accuracy_table(compared), cost_table(compared)],
        ),
        Section(
            "Accuracy per domain",
            pictures=bars_pictures(compared),
            tables=[*domain_tables(compared), *transfer_tables(compared)],
        ),
        *_path_sections(first, pair),
        Section("Where it comes from", tables=_origin_tables(compared, first)),
    ]
    return Page(str(compared.record["name"]), _lead(compared), sections, None)


def comparison_tables(compared: Compared) -> list[Table]:
    """Those that are shown where there is no page."""
    tries = tries_table(compared)
    tables = [accuracy_table(compared), cost_table(compared)]
    tables += [*domain_tables(compared), *transfer_tables(compared)]
    return [*tables, tries] if tries else tables


def first_run(compared: Compared) -> Run:
    """Of the main row, else of the first: whose paths are shown."""
    row = compared.row("main") or next(iter(compared.rows.values()))
    return row.all_runs[0]


def _lead(compared: Compared) -> str:
    seeds = {seed for row in compared.rows.values() for seed in row.runs}
    counts = {"method": compared.rows, "domain": compared.domains, "seed": seeds}
    methods, domains, of_seeds = (
        f"{len(of)} {what}{'' if len(of) == 1 else 's'}" for what, of in counts.items()
    )
    lead = f"{methods} on {domains}, {of_seeds}."
    main, baseline = compared.row("main"), compared.row("baseline")
    if main is None or baseline is None or main is baseline:
        return lead
    lead += f" {main.label} has {main.parameters / baseline.parameters:.2f}x the parameters and "
    lead += f"{main.macs / baseline.macs:.2f}x the multiply-adds of {baseline.label}"
    difference = compared.difference(baseline)
    if difference is not None:
        lead += f"; difference in mean {compared.split} top-1, points: {interval(difference)}"
    return f"{lead}."


def chance_remarks(compared: Compared) -> list[str]:
    """A sentence per method with domains that it has not learnt in some run."""
    remarks = []
    for row in compared.rows.values():
        counts: dict[str, int] = {}
        for run in row.all_runs:
            of = run.scores.get(row.split)
            for domain, accuracy in (of or {}).get("accuracy", {}).items():
                if of and at_chance(accuracy, of["guessing"][domain], of["images"][domain]):
                    counts[domain] = counts.get(domain, 0) + 1
        if counts:
            total = len(row.all_runs)
            named = ", ".join(f"{domain} ({n} of {total})" for domain, n in counts.items())
            if len(counts) == len(row.domains) > 1 and len(set(counts.values())) == 1:
                (times,) = set(counts.values())
                named = f"all {len(counts)} domains ({times} of {total})"
            remarks.append(f"{row.label} is at chance ({row.split}) in some runs: {named}.")
    return remarks


def bars_pictures(compared: Compared) -> list[Picture]:
    """A picture per list of rows that the file wants drawn, of those that are there."""
    pictures = []
    for number, names in enumerate(compared.record["bars"], 1):
        there = [compared.rows[name] for name in names if name in compared.rows]
        drawn = [row for row in there if row.accuracy]
        if not drawn:
            continue
        figure = accuracy_figure(
            {compared.split: {row.label: _means(row) for row in drawn}},
            _chance(drawn),
            {row.label: _deviations(row) for row in drawn},
        )
        caption = (
            f"Top-1 per domain: {', '.join(row.label for row in drawn)}. Means over the seeds; "
            "lines over the bars: plus and minus a standard deviation."
        )
        pictures.append(Picture(f"bars_{number}", caption, figure))
    return pictures


def _means(row: ComparedRow) -> dict[str, float]:
    return {d: Spread.of(list(row.of_domain(d).values())).mean for d in row.domains}


def _deviations(row: ComparedRow) -> dict[str, float]:
    """Of the domains and of their mean, where there are several seeds."""
    series = {domain: row.of_domain(domain) for domain in row.domains} | {MEAN: row.means}
    spreads = {name: Spread.of(list(of.values())).deviation for name, of in series.items()}
    return {name: deviation for name, deviation in spreads.items() if deviation is not None}


def _chance(rows: Sequence[ComparedRow]) -> dict[str, float]:
    chance: dict[str, float] = {}
    for row in rows:
        chance |= {d: of for d, of in row.all_runs[0].chance.items() if d not in chance}
    return chance


def trade_off_pictures(compared: Compared) -> list[Picture]:
    points = [
        Point(
            row.label,
            {
                "parameters, thousands": row.parameters / 1e3,
                "multiply-adds of all domains, millions": row.macs / 1e6,
            },
            spread.mean,
            spread.deviation,
            row.group,
        )
        for row in compared.rows.values()
        if row.means and (spread := Spread.of(list(row.means.values())))
    ]
    if not points:
        return []
    caption = (
        f"Mean {compared.split} top-1 against parameters (shared nodes once, heads and norm "
        "included) and multiply-adds (one image of each domain, summed). Bars: plus and minus a "
        "standard deviation over the seeds."
    )
    return [Picture("trade_off", caption, trade_off_figure(points, compared.split))]


def _path_sections(run: Run, pair: tuple[str, str] | None) -> list[Section]:
    """Of the main row's first run."""
    sections = [Section("The multi-path map", pictures=[map_picture(run, "")])]
    if len(run.num_classes) > 1:
        alike = Section("How alike the paths are", pictures=[similarity_picture(run, "")])
        pairs = Section("Two domains side by side", pictures=pair_pictures(run, pair, ""))
        sections = [alike, *sections, pairs]
    return sections


def _origin_tables(compared: Compared, run: Run) -> list[Table]:
    tries = tries_table(compared)
    tables = [method_table(compared), origin_table([run]), space_table(run.architecture.space)]
    return [tries, *tables] if tries else tables
