"""The tables that the commands print at their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mdl.results.costs import Comparison, NetworkCost
from mdl.space.architecture import Architecture, similarity
from mdl.space.search_space import ZERO


def print_costs(comparison: Comparison, title: str) -> None:
    """Parameters and multiply-adds of a network beside its alternatives."""
    table = Table(title=title)
    table.add_column("network")
    for column in ("parameters", "ratio", "convolutions", "norm", "heads", "M multiply-adds"):
        table.add_column(column, justify="right")
    rows: list[tuple[str, NetworkCost]] = [
        ("this multi-path network", comparison.multi_path),
        ("the same paths, nothing shared", comparison.separate),
        (f"one path ({comparison.reference}), a head each", comparison.single_path),
    ]
    for name, cost in rows:
        of = cost.parameters
        table.add_row(
            name,
            *(f"{of.total:,}", f"{comparison.ratio(cost):.2f}x"),
            *(f"{of.convolutions:,}", f"{of.norm:,}", f"{of.heads:,}"),
            f"{cost.macs / 1e6:.1f}",
        )
    Console().print(table)


def print_paths(architecture: Architecture, entropies: Mapping[str, float]) -> None:
    """A row per domain: how long its path is, and how alike to the others'."""
    scores = similarity(architecture.paths)
    table = Table(title="paths found")
    table.add_column("domain")
    for column in ("layers used", "mean Jaccard with others", "entropy at the end, nats"):
        table.add_column(column, justify="right")
    for (domain, path), row in zip(architecture.paths.items(), scores, strict=True):
        used = sum(block != ZERO for block in path)
        others = (sum(row) - 1) / max(len(row) - 1, 1)
        entropy = entropies.get(domain)
        shown = "-" if entropy is None else f"{entropy:.2f}"
        table.add_row(domain, f"{used} of {len(path)}", f"{others:.2f}", shown)
    Console().print(table)


def print_scores(splits: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A row per domain: top-1 accuracy on each scored split."""
    table = Table(title=title)
    table.add_column("domain")
    for split in splits:
        table.add_column(f"{split} top-1, %", justify="right")
        table.add_column(f"{split} images", justify="right")
    domains = list(next(iter(splits.values()))["accuracy"])
    for domain in domains:
        cells = []
        for scores in splits.values():
            cells += [f"{100 * scores['accuracy'][domain]:.1f}", str(scores["images"][domain])]
        table.add_row(domain, *cells)
    means = []
    for scores in splits.values():
        means += [f"{100 * scores['mean']:.1f}", ""]
    table.add_section()
    table.add_row("mean", *means)
    Console().print(table)
