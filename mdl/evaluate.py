"""Exact per-domain accuracy of a retrained network.

    python -m mdl.evaluate RUN [--split test] [--checkpoint best|last] [key=value ...]
    python -m mdl.evaluate RUN --submission results.zip

RUN is a run folder, e.g. runs/mpnas_retrain. Every image of the split counts once. A submission
is the answer file of the Visual Domain Decathlon, for its test images without labels. Keys are the
recipe's that change no result, e.g. data.evaluation_batch_size=16 where memory is short.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint

from mdl.assembly import build_data, build_retrain, find_domains
from mdl.command import STOPPED, run_command
from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import SPLITS
from mdl.errors import UserError
from mdl.faults import ErrorStage, faults_told
from mdl.recipe import Recipe, TrainerRecipe
from mdl.recipe_callbacks import build_callbacks
from mdl.results.decathlon_score import score_of
from mdl.results.submission import Answers, check_answerable, write_submission
from mdl.results.summary import score_table
from mdl.run_folder import RunFolder
from mdl.scoring import choose_checkpoint, predict, test_ids, write_scores
from mdl.space.architecture import Architecture
from mdl.trainer import quiet
from mdl.training.retrain import RetrainModule
from mdl.training.stop_signal import RunStopped, StopSignal
from mdl.weights import load_weights


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_intermixed_args(arguments)
    quiet()
    folder = RunFolder.find(options.run)
    recipe = folder.recipe_with(options.settings) if options.settings else folder.recipe()
    if recipe.phase != "retrain":
        raise UserError(
            f"{options.run} is the run of a search; expected a retrained network. "
            f"Retrain it: {folder.retrain_command()}"
        )
    checkpoint = choose_checkpoint(folder, options.checkpoint)
    domains = find_domains(recipe)
    architecture = Architecture.read(folder.architecture_file)
    module = build_retrain(recipe, domains, architecture)
    data = build_data(recipe, domains, architecture=architecture)
    if options.submission is not None:
        if options.split not in (None, "test"):
            raise UserError(
                f"--submission answers the test images; --split {options.split} was given beside "
                "it. Leave one of the two out."
            )
        # before anything is computed: what the challenge would not take is refused now
        ids = test_ids(domains)
        check_answerable(ids, options.submission, options.partial)
        load_weights(module, folder.checkpoints_dir / checkpoint, recipe, domains)
        _submit(module, data, ids, options.submission, recipe.trainer)
        return
    if options.partial:
        raise UserError("--partial is of a submission; expected --submission ZIP beside it.")
    split = options.split or "test"
    if split in data.train_splits and split != "train":
        raise UserError(
            f"{options.run} was trained on the {split} split (data.train_splits): its "
            "accuracy there says nothing. Evaluate another --split."
        )
    if not (scored := data.scored(split)):
        raise UserError(
            f"No domain has labelled {split} images: there is nothing to compare answers to. "
            "Evaluate another --split, or write them with --submission."
        )
    if lacking := [name for name in domains if name not in scored]:
        print(f"{', '.join(lacking)} without labelled {split} images; means are of the others")
    watching = [ErrorStage(), StopSignal(None)]
    trainer = _trainer(recipe, [*build_callbacks(recipe, options.allow), *watching])
    try:
        with faults_told(trainer, recipe):
            scores = write_scores(recipe, folder, module, data, trainer, [split], checkpoint)
    except RunStopped as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        name = signal.Signals(stopped.number).name
        print(f"The evaluation of {options.run} was stopped ({name}); start it again")
        raise SystemExit(STOPPED) from None
    score_table(scores, f"{recipe.name}, {checkpoint}").print()
    if (points := score_of(scores[split]["accuracy"])) is not None:
        print(f"Decathlon score S on {split}: {points:.0f}")
    print(f"Next: python -m mdl.report {options.run}")


def _trainer(recipe: Recipe, callbacks: list[L.Callback]) -> L.Trainer:
    """Of the recipe's kind of device, or of a CPU where that is not there.

    What saves checkpoints in training has nothing to save here, and Lightning refuses it.
    """
    accelerator = recipe.trainer.accelerator
    if not _is_there(accelerator):
        print(f"There is no {accelerator} here: evaluated on a CPU")
        accelerator = "cpu"
    return L.Trainer(
        accelerator=accelerator,
        devices=1,  # exactly one: every image counts once, whatever the training ran on
        precision=recipe.trainer.precision,  # type: ignore[arg-type]
        callbacks=[callback for callback in callbacks if not isinstance(callback, Checkpoint)],
        **_QUIET,
    )


_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def _is_there(accelerator: str) -> bool:
    try:
        L.Trainer(accelerator=accelerator, devices=1, **_QUIET)
    except MisconfigurationException:
        return False
    return True


def _submit(
    module: RetrainModule,
    data: MultiDomainData,
    ids: dict[str, list[int]],
    file: Path,
    trainer: TrainerRecipe,
) -> None:
    # the network that was built lies on the CPU
    on_gpu = trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    # as it is scored
    halved = trainer.precision == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16, enabled=halved):
        labels = predict(module.to(device), data, "test")
    count = write_submission(file, {d: Answers(ids[d], labels[d]) for d in labels})
    print(f"{file}: answers for {count:,} test images of {len(ids)} domains, checked")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="see above")
    parser.add_argument("--split", choices=SPLITS, help="default: test")
    parser.add_argument("--checkpoint", choices=("best", "last"))
    parser.add_argument(
        "--submission", type=Path, metavar="ZIP", help="write the Decathlon's answer file"
    )
    parser.add_argument(
        "--partial", action="store_true", help="answer the test images that are there"
    )
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE",
        help="let the run's recipe name callbacks of a package of yours",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
