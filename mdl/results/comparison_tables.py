"""A comparison in tables: what each method gains and costs, per domain, and how it was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import fmean

from mdl.comparison.estimate import duration
from mdl.results.compared import Compared, ComparedRow
from mdl.results.costs import NetworkCost
from mdl.results.statistics import Spread, paired
from mdl.results.table import Table

_MOST_COLUMNS = 6  # methods of one table per domain


def accuracy_table(compared: Compared) -> Table:
    """Mean and worst domain, the main row's lead, and the multi-task delta."""
    reference, baseline = compared.row("reference"), compared.row("baseline")
    main = compared.row("main")
    rows = []
    for row in compared.rows.values():
        parameters = _ratio(row, reference) if reference else f"{row.parameters:,.0f}"
        cells = [row.label, parameters, f"{row.macs / 1e6:.1f}"]
        cells += [plus_minus(_spread(row.means)), _worst(row)]
        if main is not None:
            cells.append("" if row is main else interval(compared.difference(row)))
        if baseline is not None:
            cells.append("" if row is baseline else signed(row.delta(baseline)))
        rows.append([*cells, str(len(row.means))])
    columns = ["method", "parameters", "M macs", f"{compared.split} top-1, %", "worst domain, %"]
    if main is not None:
        columns.append(f"{main.label} minus it")
    if baseline is not None:
        columns.append("multi-task delta, %")
    return Table("Accuracy", [*columns, "seeds"], rows, _accuracy_note(compared))


def _accuracy_note(compared: Compared) -> str:
    reference, baseline = compared.row("reference"), compared.row("baseline")
    note = "Top-1: mean over the domains, then mean and standard deviation over the seeds."
    if reference is not None:
        note += f" Parameters: shared nodes counted once, as a ratio to {reference.label}."
    note += " M macs: million multiply-adds, one image of each domain, summed."
    if compared.row("main") is not None:
        note += (
            " Differences are in points, paired by seed, with the 95 % interval of their mean by "
            "Student's t."
        )
    if any(set(row.domains) != set(compared.domains) for row in compared.rows.values()):
        note += (
            " Methods have different domains: each mean is over a method's own, differences are "
            "over those that both have."
        )
    if baseline is not None:
        note += (
            f" Multi-task delta: mean over the domains of the relative change against "
            f"{baseline.label}, with half the width of its 95 % interval."
        )
    return note


def cost_table(compared: Compared) -> Table:
    """Parameters by part, multiply-adds in each sense, seconds."""
    reference = compared.row("reference")
    rows = []
    for row in compared.rows.values():
        counts = [
            row.parameters,
            row.cost(lambda run: run.cost.parameters.convolutions),
            row.cost(lambda run: run.cost.parameters.norm),
            row.cost(lambda run: run.cost.parameters.heads),
        ]
        macs = [
            row.cost(lambda run: path_mean(run.cost)),
            row.macs,
            row.cost(lambda run: run.cost.one_image_macs),
        ]
        times = [_time(row.search_seconds), _time(row.training_seconds)]
        rows.append(
            [
                row.label,
                _ratio(row, reference),
                *(f"{count:,.0f}" for count in counts),
                *(f"{of / 1e6:.2f}" for of in macs),
                *times,
            ]
        )
    columns = ["method", "ratio", "parameters", "convolutions", "norm", "heads"]
    columns += ["M macs, a domain", "all domains", "one image through all"]
    columns += ["search", "training"]
    note = (
        "Means over the runs. Shared nodes are counted once. Multiply-adds, in millions: one image "
        "of a domain on its path, the mean of the domains; one image of each domain, summed; one "
        "image sent through all domains, common work done once. Search and training: wall time of "
        "a run and of what it needs; a search counts in full for every method that uses it. A "
        "frozen backbone's norms are counted for every domain, though they are one and the same."
    )
    return Table("Cost", columns, rows, note)


def path_mean(cost: NetworkCost) -> float:
    """Multiply-adds of one image on its domain's path, the mean of the domains."""
    return fmean(cost.path_macs.values())


def domain_tables(compared: Compared) -> list[Table]:
    """Top-1 of every method on every domain; as many tables as the methods need."""
    rows = list(compared.rows.values())
    note = "Mean and standard deviation over the seeds."
    return [
        _domain_table(compared, part, f"Top-1 per domain ({compared.split}), %{which}", note, None)
        for which, part in _parts(rows)
    ]


def transfer_tables(compared: Compared) -> list[Table]:
    """Change of every method against the baseline on every domain; none without a baseline."""
    baseline = compared.row("baseline")
    if baseline is None:
        return []
    rows = [row for row in compared.rows.values() if row is not baseline]
    note = (
        "Points, paired by seed: mean, and half the width of its 95 % interval by Student's t. "
        "Above 0: positive transfer; below: negative."
    )
    title = f"Change against {baseline.label}, per domain"
    return [
        _domain_table(compared, part, f"{title}{which}", note, baseline)
        for which, part in _parts(rows)
    ]


def _parts(rows: Sequence[ComparedRow]) -> Iterator[tuple[str, list[ComparedRow]]]:
    """What tells a part from the others, and its rows."""
    count, left = -(-len(rows) // _MOST_COLUMNS), iter(rows)
    for number in range(1, count + 1):
        which = f" ({number} of {count})" if count > 1 else ""
        yield which, list(islice(left, _MOST_COLUMNS))


def _domain_table(
    compared: Compared,
    rows: Sequence[ComparedRow],
    title: str,
    note: str,
    baseline: ComparedRow | None,
) -> Table:
    lines = []
    for domain in compared.domains:
        cells = []
        for row in rows:
            if baseline is None:
                cells.append(plus_minus(_spread(row.of_domain(domain))))
            else:
                change = paired(row.of_domain(domain), baseline.of_domain(domain))
                cells.append(signed(change))
        lines.append([domain, *cells])
    return Table(title, ["domain", *(row.label for row in rows)], lines, note)


def tries_table(compared: Compared) -> Table | None:
    """What validation chose between; None where no row has several tries."""
    rows = []
    for of in compared.record["rows"].values():
        if len(of["tries"]) == 1:
            continue
        for place, one in enumerate(of["tries"]):
            words = ([f"search: {one['search']}"] if one["search"] else []) + one["settings"]
            val = "-" if one["val"] is None else f"{100 * one['val']:.1f}"
            chosen = "chosen" if place == of["winner"] else ""
            rows.append([of["label"], ", ".join(words) or "as it is", val, chosen])
    if not rows:
        return None
    seed = compared.record["tuning_seed"]
    note = (
        f"On seed {seed} alone, by the validation split alone; no report shows the test scores of "
        "tries that were not chosen."
    )
    columns = ["method", "try", "val top-1, %", "entered"]
    return Table("Tries", columns, rows, note, in_words=True)


def method_table(compared: Compared) -> Table:
    """What each method is, in the words of the comparison file."""
    rows = []
    for of in compared.record["rows"].values():
        like = compared.record["rows"][of["like"]]["label"] if of["like"] else ""
        settings = ", ".join(of["settings"])
        rows.append([of["label"], of["search"] or "", like, settings, str(of["draws"])])
    columns = ["method", "its search", "like", "settings of its own", "draws per seed"]
    return Table("Methods", columns, rows, in_words=True)


def _spread(by_seed: dict[int, float]) -> Spread | None:
    return Spread.of(list(by_seed.values())) if by_seed else None


def _ratio(row: ComparedRow, reference: ComparedRow | None) -> str:
    if reference is None:
        return "-"
    return f"{row.parameters / reference.parameters:.2f}x"


def _worst(row: ComparedRow) -> str:
    if row.worst is None:
        return "-"
    domain, spread = row.worst
    return f"{plus_minus(spread)} ({domain})"


def _time(seconds: Sequence[float]) -> str:
    return duration(fmean(seconds)) if seconds and max(seconds) > 0 else "-"


def plus_minus(spread: Spread | None) -> str:
    """'53.2 ± 1.1', in percent."""
    if spread is None:
        return "-"
    if spread.deviation is None:
        return f"{100 * spread.mean:.1f}"
    return f"{100 * spread.mean:.1f} ± {100 * spread.deviation:.1f}"


def signed(spread: Spread | None) -> str:
    """'+1.9 ± 0.4', in points: the mean and half its 95 % interval."""
    if spread is None:
        return "-"
    text = f"{100 * spread.mean:+.1f}"
    return text if spread.half_width is None else f"{text} ± {100 * spread.half_width:.1f}"


def interval(spread: Spread | None) -> str:
    """'+1.9 [+0.5, +3.3]', in points, or that one seed gives none."""
    if spread is None:
        return "-"
    if spread.half_width is None:
        return f"{100 * spread.mean:+.1f} (one seed)"
    ends = (spread.mean - spread.half_width, spread.mean + spread.half_width)
    low, high = (f"{100 * end:+.1f}" for end in ends)
    return f"{100 * spread.mean:+.1f} [{low}, {high}], n = {spread.count}"
