"""Where a report's numbers come from, and the commands that make them again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from mdl.results.run import Run
from mdl.results.table import Table
from mdl.space.search_space import SearchSpace

_NOT_TOLD = "normalisation", "num_classes"


def origin_table(runs: Sequence[Run]) -> Table:
    """A column per run: recipe, seed, steps, data, space."""
    facts = [_facts(run) for run in runs]
    rows = [[name, *(of[name] for of in facts)] for name in facts[0]]
    return Table("Runs", ["", *(run.label for run in runs)], rows, in_words=True)


def _facts(run: Run) -> dict[str, str]:
    recipe, source = run.recipe, run.architecture.source
    scored = {str(scores.get("checkpoint_step", "-")) for scores in run.scores.values()}
    found_by = f"{source.get('run', '-')}, step {source.get('step', '-')}"
    if "paths" in source:  # not by a search
        told = {k: of for k, of in source.items() if of is not None and k not in _NOT_TOLD}
        found_by = ", ".join(f"{key}: {of}" for key, of in told.items())
    return {
        "recipe": recipe.name,
        "phase": recipe.phase,
        "folder": str(run.folder.path),
        "seed": str(recipe.seed),
        "steps": f"{recipe.trainer.max_steps:,}",
        "scored at step": ", ".join(sorted(scored)) or "-",
        "architecture found by": found_by,
        "data.root": recipe.data.root,
        "domains (classes)": ", ".join(f"{d} ({n})" for d, n in run.num_classes.items()),
        "image size": f"{recipe.data.image_size} px"
        + "".join(
            f", {name} {of.image_size} px"
            for name, of in recipe.data.per_domain.items()
            if of.image_size is not None
        ),
        "images of a domain per step": str(recipe.data.batch_size),
        "batch norm": recipe.network.batch_norm,
        "nodes": recipe.network.nodes,
        "space's fingerprint": run.architecture.space.fingerprint,
    }


def space_table(space: SearchSpace) -> Table:
    """The stages between stem and head convolution."""
    layers = iter(space.layers)
    rows = []
    for number, stage in enumerate(space.stages, 1):
        skippable = sum(layer.can_skip for layer in islice(layers, stage.depth))
        facts = [number, stage.width, stage.depth, stage.stride, stage.activation, skippable]
        rows.append([str(fact) for fact in facts])
    note = (
        f"Stem: {space.stem_width} channels, stride {space.stem_stride}. Head convolution: "
        f"{space.head_width} channels. Blocks: {', '.join(map(str, space.blocks))}, and zero "
        "where a layer can be skipped."
    )
    columns = ["stage", "width", "layers", "stride", "activation", "layers that can be skipped"]
    return Table(f"Space {space.fingerprint}", columns, rows, note)


def commands(runs: Sequence[Run], searches: Mapping[str, Run]) -> list[str]:
    """What to type to make the runs and this report again, beside what is there."""
    every = {run.label: run for run in [*searches.values(), *runs]}
    again = {label: Path(run.recipe.runs_dir) / f"{label}_again" for label, run in every.items()}
    lines = []
    # a search before the retraining that reads what it found
    for label, run in sorted(every.items(), key=lambda item: item[1].is_retraining):
        words = ["python", "-m", "mdl.fit", str(run.folder.recipe_file), f"name={label}_again"]
        if label in searches:
            found = again[searches[label].label] / run.folder.architecture_file.name
            words.append(f"architecture_file={found}")
        elif run.trains_searched_paths:
            words.append(f"architecture_file={run.folder.architecture_file}")
        lines.append(shlex.join(words))
    reported = [str(again[run.label]) for run in runs]
    return [*lines, shlex.join(["python", "-m", "mdl.report", *reported])]
