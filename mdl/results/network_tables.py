"""The published table's columns for runs, and for what they stand beside."""

from __future__ import annotations

from collections.abc import Sequence

from mdl.results.costs import NetworkCost
from mdl.results.run import Run
from mdl.results.table import Table, giga, percent

SPLITS = ("val", "test")

# mean top-1 and costs on the Visual Decathlon, from the project's description of MPNAS
# (Wang et al., WACV 2021): network, parameters as a ratio, GFLOPs, mean top-1 in percent
PUBLISHED = (
    ("domain-independent NAS", 5.7, 1.08, 69.9),
    ("single path multi-head", 1.0, 0.09, 35.2),
    ("multi-head NAS", 0.7, 0.04, 45.2),
    ("MPNAS", 1.3, 0.73, 71.8),
)
PUBLISHED_RATIOS = {"parameters": 1.3 / 5.7, "macs": 0.73 / 1.08}  # MPNAS to its bundle

BUNDLE = "the same paths, nothing shared"
_SAME_WORK = (
    "A network with batch norm per domain does no work in common, so that one image through all "
    "domains costs as much as one image of each."
)


def network_table(runs: Sequence[Run]) -> Table:
    """Parameters, multiply-adds and mean top-1: the runs, then the first one's alternatives."""
    single = runs[0].comparison.single_path.parameters.total
    rows = []
    for name, cost, run in _networks(runs):
        means = [run.scores.get(split, {}).get("mean") if run else None for split in SPLITS]
        total = cost.parameters.total
        ratio = f"{total / single:.2f}x"
        rows.append([name, f"{total:,}", ratio, giga(cost.macs), *map(percent, means)])
    columns = ["network", "parameters", "ratio", "GFLOPs", "val top-1, %", "test top-1, %"]
    return Table("Cost and accuracy", columns, rows, _network_note(runs))


def _network_note(runs: Sequence[Run]) -> str:
    note = (
        "Parameters: shared nodes counted once; ratio: to one path with a head each. GFLOPs: "
        "multiply-adds in thousand millions, one image of each domain on its own path, summed. "
        "Top-1: mean over the domains. '-': not measured; the rows without a run are computed, "
        "not trained."
    )
    first = runs[0]
    if any(run.architecture.space != first.architecture.space for run in runs):
        note += " The runs have different spaces: the ratios are to the first run's."
    if any(run.num_classes != first.num_classes for run in runs):
        note += " The runs have different domains: each mean is over the run's own."
    if any(run.image_sizes != first.image_sizes for run in runs):
        note += " The runs have different image sizes."
    return note


def _networks(runs: Sequence[Run]) -> list[tuple[str, NetworkCost, Run | None]]:
    """Name, cost, and the run where it is one."""
    kinds = {False: "multi-path", True: "private nodes"}
    rows: list[tuple[str, NetworkCost, Run | None]] = [
        (f"{run.label} ({kinds[run.is_private]})", run.cost, run) for run in runs
    ]
    computed = runs[0].comparison
    rows.append((f"computed: {BUNDLE}", computed.separate, None))
    name = f"computed: one path ({computed.reference}), a head each"
    return [*rows, (name, computed.single_path, None)]


def parts_table(runs: Sequence[Run]) -> Table:
    """What the parameters are of, and multiply-adds in both senses."""
    rows = []
    for name, cost, _ in _networks(runs):
        of = cost.parameters
        counts = [f"{count:,}" for count in (of.convolutions, of.norm, of.heads)]
        rows.append([name, *counts, giga(cost.macs), giga(cost.one_image_macs)])
    columns = ["network", "convolutions", "norm", "heads"]
    columns += ["GFLOPs, one image of each domain", "GFLOPs, one image through all domains"]
    return Table("Parts of the cost", columns, rows, _SAME_WORK)


def bundle_table(run: Run) -> Table:
    """What sharing saves: a run against the bundle of its own paths."""
    bundle, cost = run.comparison.separate, run.cost
    ratios = [
        ("parameters", cost.parameters.total / bundle.parameters.total, "parameters"),
        ("multiply-adds, one image of each domain", cost.macs / bundle.macs, "macs"),
        (
            "multiply-adds, one image through all domains",
            cost.one_image_macs / bundle.one_image_macs,
            "macs",
        ),
    ]
    rows = [[name, f"{ratio:.2f}x", f"{PUBLISHED_RATIOS[key]:.2f}x"] for name, ratio, key in ratios]
    note = (
        "The bundle here takes the same paths, so that one image of each domain costs the same by "
        "construction; the published bundle was searched for by itself, and which of the two "
        "sums its GFLOPs are is not said."
    )
    columns = ["ratio", run.label, "published MPNAS, Visual Decathlon"]
    return Table(f"{run.label} against its bundle ({BUNDLE})", columns, rows, note)


def published_table() -> Table:
    rows = [[name, f"{p:.1f}x", f"{g:.2f}", f"{top:.1f}"] for name, p, g, top in PUBLISHED]
    columns = ["network", "parameters", "GFLOPs", "mean top-1, %"]
    title = "Published, on the Visual Decathlon, for orientation"
    note = "Other data, other image sizes, another space: not to be compared number by number."
    return Table(title, columns, rows, note)
