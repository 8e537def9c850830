"""Measures how long each block of a space takes on this machine, into a table for searches.

    python -m mdl.profile RECIPE [MORE.yaml ...] [key=value ...] --runtime executorch --out TABLE
    python -m mdl.fit RECIPE ... search.cost=latency search.latency.file=TABLE \\
        search.latency.budget=0.07

Space and image size are the recipe's. Runtimes: executorch, onnx, eager-cpu, eager-gpu; one thread
unless --threads says more. The table is fitted to random paths, too, and its predictions for others
are compared with what they take. A table of another device has the same form: TABLE is JSON,
milliseconds of each block of each layer.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mdl.assembly import build_space
from mdl.command import at_least, run_command
from mdl.device.profiling import RUNTIMES, Predicted, profile
from mdl.errors import UserError
from mdl.recipe_files import load_recipe
from mdl.results.table import Table
from mdl.space.latency import LatencyTable
from mdl.whole_files import disk_faults_told, write_text

_FITTED, _CHECKED, _REPEATS, _WITHIN = 40, 30, 100, 0.10
_TRUSTED = 0.7  # part of the random paths; on a quiet machine it was all


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    recipe = load_recipe(options.recipe)
    for name, of in recipe.data.per_domain.items():
        if of.image_size not in (None, recipe.data.image_size):
            raise UserError(
                f"data.per_domain.{name}.image_size is {of.image_size}, data.image_size is "
                f"{recipe.data.image_size}; a table is of one size. Measure them one by one."
            )
    _check_writable(options.out)
    torch.set_num_threads(options.threads)
    space = build_space(recipe.space)
    print(f"Times whole paths with {options.runtime}: some minutes.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        table, checks = profile(
            space,
            recipe.data.image_size,
            options.runtime,
            Path(folder),
            options.repeats,
            options.fitted,
            options.checked,
        )
    source = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": options.threads,
        "torch": torch.__version__,
        "repeats": options.repeats,
        "fitted_paths": options.fitted,
        "random_paths": [asdict(of) for of in checks],
    }
    table = replace(table, source=source)
    write_text(options.out, table.dumps())
    block_table(table).print()
    print(in_words(checks))
    print(f"Table: {options.out}")
    if told := doubts(checks):
        print(f"warning: {told}", file=sys.stderr)
    words = [*options.recipe, "search.cost=latency", f"search.latency.file={options.out}"]
    print(f"Next: python -m mdl.fit {shlex.join(words)} search.latency.budget=MILLISECONDS")


def _check_writable(file: Path) -> None:
    """Raises UserError where a table could not be written: before minutes of measuring."""
    if file.is_dir():
        raise UserError(f"--out is {file}, a folder; expected the name of a file for the table.")
    with disk_faults_told(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass


def block_table(table: LatencyTable) -> Table:
    """A row per layer."""
    blocks = list(dict.fromkeys(str(block) for of in table.blocks for block in of))
    rows = []
    for layer, of in zip(table.space.layers, table.blocks, strict=True):
        named = {str(block): f"{1e3 * ms:.1f}" for block, ms in of.items()}
        rows.append([layer.name, *(named.get(block, "-") for block in blocks)])
    note = (
        f"what all paths have in common: {1e3 * table.fixed:.1f}, and "
        f"{1e3 * table.per_class:.3f} per class"
    )
    title = f"microseconds of one image of {table.image_size} px, {table.runtime}"
    return Table(title, ["layer", *blocks], rows, note)


def in_words(checks: Sequence[Predicted]) -> str:
    """How well the table predicted random paths."""
    if not checks:
        return "No random path was measured."
    near = sum(abs(of.ratio - 1) <= _WITHIN for of in checks)
    ratios = sorted(of.ratio for of in checks)
    return (
        f"Predicted / measured of {len(checks)} random paths: {near} within {_WITHIN:.0%}, from "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    )


def doubts(checks: Sequence[Predicted]) -> str:
    """What speaks against a table, and what to do; empty where nothing does."""
    far = sum(abs(of.ratio - 1) > _WITHIN for of in checks)
    if far <= (1 - _TRUSTED) * len(checks):
        return ""
    return (
        f"do not search with this table: {far} of {len(checks)} paths take another time than it "
        "says. Measure again while nothing else runs, or with more --repeats or --fitted; if that "
        "is no better, the times of blocks do not add up on this machine, and a table measured on "
        "the device itself is needed."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="+", metavar="RECIPE")
    parser.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0])
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE")
    parser.add_argument("--threads", type=at_least(1), default=1)
    parser.add_argument("--repeats", type=at_least(1), default=_REPEATS, help="runs of each path")
    help_ = "random paths that the table is fitted to, beside those that differ in one block"
    parser.add_argument("--fitted", type=at_least(0), default=_FITTED, help=help_)
    help_ = "further random paths, to compare the table's predictions with"
    parser.add_argument("--checked", type=at_least(0), default=_CHECKED, help=help_)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
