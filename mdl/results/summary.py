"""The tables that the commands print at their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdl.networks.multipath import path_users
from mdl.networks.parameters import ParameterTable
from mdl.results.costs import Comparison, NetworkCost
from mdl.results.table import Table, percent
from mdl.space.architecture import Architecture, similarity
from mdl.space.search_space import ZERO


def cost_table(comparison: Comparison, private: bool, title: str) -> Table:
    """Parameters and multiply-adds of a network beside its alternatives.

    private: whether the network is the bundle, with nothing shared.
    """
    multi_path, bundle = "this multi-path network", "same paths, nothing shared"
    if private:
        multi_path, bundle = "same paths, nodes shared", "this bundle, nothing shared"
    networks: list[tuple[str, NetworkCost]] = [
        (multi_path, comparison.multi_path),
        (bundle, comparison.separate),
        (f"one path ({comparison.reference})", comparison.single_path),
    ]
    rows = []
    for name, cost in networks:
        of = cost.parameters
        counts = [f"{of.total:,}", f"{comparison.ratio(cost):.2f}x", f"{of.heads:,}"]
        rows.append([name, *counts, f"{cost.macs / 1e6:.1f}"])
    return Table(title, ["network", "parameters", "ratio", "in heads", "M macs"], rows)


def addition_in_words(
    architecture: Architecture, num_classes: Mapping[str, int], batch_norm: str
) -> str:
    """What domains that were added to a trained network cost (`retrain.paths=added`)."""
    added = architecture.source["added"]
    table = ParameterTable(architecture.space, num_classes, batch_norm)
    before = {d: path for d, path in architecture.paths.items() if d not in added}
    known = path_users(architecture.space, before)
    new = [node for node in path_users(architecture.space, architecture.paths) if node not in known]
    parts = table.count(before), table.count(architecture.paths)
    more = parts[1].total - parts[0].total
    return (
        f"Added {', '.join(added)}: {more:,} parameters, {more / parts[0].total:.1%} of the "
        f"{parts[0].total:,} before: {parts[1].heads - parts[0].heads:,} in heads, "
        f"{parts[1].norm - parts[0].norm:,} in batch norm, "
        f"{parts[1].convolutions - parts[0].convolutions:,} in {len(new)} new blocks"
    )


def path_table(architecture: Architecture, entropies: Mapping[str, float]) -> Table:
    """A row per domain: how long its path is, and how alike to the others'."""
    scores = similarity(architecture.paths)
    rows = []
    for (domain, path), row in zip(architecture.paths.items(), scores, strict=True):
        used = sum(block != ZERO for block in path)
        alike = f"{(sum(row) - 1) / (len(row) - 1):.2f}" if len(row) > 1 else "-"
        entropy = f"{entropies[domain]:.2f}" if domain in entropies else "-"
        rows.append([domain, f"{used} of {len(path)}", alike, entropy])
    columns = ["domain", "layers used", "mean Jaccard", "entropy, nats per layer"]
    return Table("paths found", columns, rows)


def score_table(splits: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """A row per domain: top-1 accuracy on each scored split."""
    columns = ["domain"]
    for split in splits:
        columns += [f"{split} top-1, %", "images"]
    rows = []
    for domain in dict.fromkeys(name for scores in splits.values() for name in scores["accuracy"]):
        rows.append([domain])
        for scores in splits.values():
            known = domain in scores["accuracy"]
            rows[-1] += (
                [percent(scores["accuracy"][domain]), str(scores["images"][domain])]
                if known
                else ["-", "-"]
            )
    mean = ["mean"]
    for scores in splits.values():
        mean += [percent(scores["mean"]), ""]
    return Table(title, columns, [*rows, mean])
