"""Scores: of a retrained network, exact, into `scores.json`; of paths by a super-network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mdl.console import phase_bar
from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import Domain
from mdl.data.parcel import NO_LABEL, Sample
from mdl.data.shards import ShardImages
from mdl.errors import UserError
from mdl.recipe import Recipe
from mdl.run_folder import RunFolder
from mdl.space.search_space import Path as SpacePath
from mdl.training.checkpoints import BEST, LAST, read_whole
from mdl.training.retrain import RetrainModule
from mdl.training.search import SearchModule
from mdl.weights import load_weights


def scored_splits(data: MultiDomainData) -> list[str]:
    """Of 'val' and 'test', those that were not trained on and have labels in some domain."""
    scored = []
    for split in ("val", "test"):
        if split in data.train_splits:
            continue
        there = data.scored(split)
        if lacking := [name for name in data.domains if name not in there]:
            rest = "; means are of the others" if there else ""
            print(f"No {split} scores: {', '.join(lacking)} without labelled {split} images{rest}")
        if there:
            scored.append(split)
    return scored


def choose_checkpoint(folder: RunFolder, wanted: str | None = None) -> str:
    """The file name of the wanted checkpoint: the best by validation, else the last.

    Raises UserError where it is not there.
    """
    there = [name for name in (BEST, LAST) if (folder.checkpoints_dir / name).is_file()]
    name = f"{wanted}.ckpt" if wanted else next(iter(there), BEST)
    if name not in there:
        found = ", ".join(there) or "none"
        raise UserError(
            f"No checkpoint {name} in {folder.checkpoints_dir}; found {found}. A retraining writes "
            "last.ckpt, and best.ckpt at its first validation (trainer.validation_interval)."
        )
    return name


def predict(module: RetrainModule, data: MultiDomainData, split: str) -> dict[str, list[int]]:
    """The most likely class of every image of a split, in the order of its index."""
    stream = data.evaluation_stream(split)
    labels: dict[str, list[int]] = {domain: [] for domain in module.domains}
    module.eval()
    with torch.inference_mode(), phase_bar("answering", len(stream)) as advance:
        for samples in stream:
            there = {d: Sample(*(p.to(module.device) for p in of)) for d, of in samples.items()}
            logits = module.average_logits(data.transform(there, augment=False))
            for domain, of in logits.items():
                labels[domain] += of.argmax(1).tolist()
            advance(1)
    return labels


def test_ids(domains: Mapping[str, Domain]) -> dict[str, list[int]]:
    """Domain -> the publisher's numbers of its test images, in the order of their index."""
    return {name: ShardImages(of, "test").rows["id"].tolist() for name, of in domains.items()}


def score(
    recipe: Recipe,
    folder: RunFolder,
    module: RetrainModule,
    data: MultiDomainData,
    trainer: L.Trainer,
    split: str,
    checkpoint: str,
) -> dict[str, Any]:
    """Accuracy of every labelled image of a split, once, by a checkpoint's averaged weights.

    Of the domains that have some; the mean is of these.
    """
    step = load_weights(module, folder.checkpoints_dir / checkpoint, recipe, data.domains)
    data.split = split
    module.evaluated_split, module.evaluated_domains = split, data.scored(split)
    trainer.test(module, datamodule=data, verbose=False)
    scored = module.evaluated_domains
    accuracy = {d: module.records[f"{split}/accuracy/{d}"] for d in scored}
    return {
        "checkpoint": checkpoint,
        "checkpoint_step": step,
        "images": {d: module.counted[d] for d in scored},
        "guessing": {d: data.domains[d].split(split).majority for d in scored},
        "accuracy": accuracy,
        "mean": sum(accuracy.values()) / len(accuracy),
        "loss": {d: module.records[f"{split}/loss/{d}"] for d in scored},
    }


def write_scores(
    recipe: Recipe,
    folder: RunFolder,
    module: RetrainModule,
    data: MultiDomainData,
    trainer: L.Trainer,
    splits: list[str],
    checkpoint: str,
    finished_step: int | None = None,
) -> dict[str, Any]:
    """Scores the splits, adds them to `scores.json`, and gives what was found by split.

    Scores of another checkpoint than a run is judged by are kept apart from those. What is known of
    a checkpoint that has since been written over is dropped.
    finished_step: at the end of a run, the steps that it has made; None leaves what is known.
    """
    found = {
        split: score(recipe, folder, module, data, trainer, split, checkpoint) for split in splits
    }
    content = folder.scores() | {"num_classes": module.num_classes}
    if finished_step is not None:
        content["step"] = finished_step
        content["stopped_early"] = finished_step < recipe.trainer.max_steps
    steps = {name: _saved_step(folder.checkpoints_dir / name) for name in (BEST, LAST)}
    known: dict[str, dict[str, Any]] = {}
    for of in (content.pop("splits", {}), *content.pop("other_checkpoints", {}).values()):
        for split, earlier in of.items():
            if steps.get(earlier["checkpoint"]) in (None, earlier["checkpoint_step"]):
                known.setdefault(earlier["checkpoint"], {})[split] = earlier
    known.setdefault(checkpoint, {}).update(found)
    content["splits"] = known.pop(choose_checkpoint(folder), {})
    if known:
        content["other_checkpoints"] = known
    if trainer.is_global_zero:
        folder.write_scores(content)
    return found


def _saved_step(checkpoint: Path) -> int | None:
    """Of which step a checkpoint is; None where it is not there, or damaged."""
    try:
        return int(read_whole(checkpoint)["global_step"])
    except Exception:  # zipfile and torch raise many kinds on damaged files
        return None


@torch.inference_mode()
def supernet_accuracies(
    module: SearchModule,
    data: MultiDomainData,
    split: str,
    architectures: Sequence[Mapping[str, SpacePath]],
) -> Tensor:
    """Accuracy on a split by the super-network's weights, [architectures, domains].

    NaN where an architecture lacks the domain. A super-network normalises by the batch: a
    domain's last batch is left out where it is not whole, unless it is the only one.
    """
    stream, domains = data.evaluation_stream(split), list(module.domains)
    right = torch.zeros(len(architectures), len(domains), device=module.device)
    counted = torch.zeros(len(domains), device=module.device)
    module.eval()
    with phase_bar("rewarding", len(stream)) as advance:
        for samples in stream:
            whole = {
                domain: Sample(*(part.to(module.device) for part in of))
                for domain, of in samples.items()
                if len(of[1]) == data.evaluation_batch_size or not counted[domains.index(domain)]
            }
            batch = data.transform(whole, augment=False)
            for domain, (_, labels) in batch.items():
                counted[domains.index(domain)] += (labels != NO_LABEL).sum()
            for row, paths in enumerate(architectures):
                images = {d: x for d, (x, _) in batch.items() if d in paths}
                for domain, logits in module.network(images, paths).items() if images else ():
                    hits = logits.argmax(1) == batch[domain][1]
                    right[row, domains.index(domain)] += hits.sum()
            advance(1)
    for row, paths in enumerate(architectures):
        right[row, [d not in paths for d in domains]] = torch.nan
    return (right / counted).cpu()
