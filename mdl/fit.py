"""Searches or retrains, as a recipe says.

    python -m mdl.fit recipes/mpnas_search.yaml [MORE.yaml ...] [key=value ...]
    python -m mdl.fit recipes/mpnas_retrain.yaml
    python -m mdl.fit RECIPE --print-recipe      shows the resolved recipe and ends
    python -m mdl.fit RECIPE --allow PACKAGE     lets recipes name callbacks of a package of yours

The same command goes on where a run stopped; a finished run says so. Exit status: 0 when the work
is done, 1 where a process was lost, 2 for what the user can mend, 75 when SIGTERM or SIGUSR1 ended
it between two steps, 130 when Ctrl-C did; Ctrl-C again ends it at once.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import lightning as L

from mdl.architectures import choose_architecture, choose_finalists
from mdl.assembly import (
    build_data,
    build_finalists,
    build_retrain,
    build_search,
    find_domains,
)
from mdl.cluster import queue_again, was_queued_again
from mdl.command import INTERRUPTED, STOPPED, run_command, take_allowed, tell
from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import Domain
from mdl.errors import ProcessLost, UserError
from mdl.faults import ErrorStage, faults_told
from mdl.going_on import last_saved
from mdl.recipe import Recipe, image_sizes
from mdl.recipe_callbacks import build_callbacks
from mdl.recipe_files import dump_recipe, keys_of, load_recipe, overrides_between
from mdl.results.chance import at_chance_in_words
from mdl.results.costs import compare_costs
from mdl.results.decathlon_score import score_of
from mdl.results.metrics import last_values
from mdl.results.summary import addition_in_words, cost_table, path_table, score_table
from mdl.results.wandb_run import close_wandb
from mdl.run_folder import RunFolder
from mdl.scoring import choose_checkpoint, scored_splits, write_scores
from mdl.space.architecture import Architecture
from mdl.trainer import build_loggers, build_trainer, quiet
from mdl.training.base import MultiDomainModule
from mdl.training.finalists import FinalistsModule
from mdl.training.retrain import RetrainModule
from mdl.training.search import SearchModule
from mdl.training.stop_signal import RunStopped
from mdl.weights import load_backbone, load_common_start, load_reused, load_supernet


@dataclass(frozen=True)
class Fitted:
    """What a finished run is made of."""

    folder: RunFolder
    module: MultiDomainModule
    data: MultiDomainData
    trainer: L.Trainer


@dataclass(frozen=True)
class _Subject:
    """What a run trains.

    architecture: of a retraining. finalists: of a last round. added: domains that are added to a
    trained network; nothing else is trained then.
    """

    module: MultiDomainModule
    architecture: Architecture | None = None
    finalists: Sequence[Architecture] = ()
    added: Sequence[str] = ()


def main(arguments: Sequence[str]) -> None:
    words, allowed = take_allowed([word for word in arguments if word != "--print-recipe"])
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return
    recipe = load_recipe(words)
    if "--print-recipe" in arguments:
        print(dump_recipe(recipe), end="")
        return
    quiet()
    folder = RunFolder.of(recipe)
    recipe = folder.settled(recipe)
    if folder.is_finished(recipe.phase, recipe.trainer.max_steps):
        done = folder.finished_steps(recipe.phase)
        print(f"{folder.path} is finished: {done} steps. Nothing to do.")
        print_product(recipe, folder, words, allowed)
        return
    try:
        fitted = fit(recipe, folder, allowed)
    except RunStopped as stopped:
        _go_on_later(folder, stopped)
    if fitted.trainer.is_global_zero:
        print_product(recipe, folder, words, allowed)


def fit(recipe: Recipe, folder: RunFolder, allowed: Sequence[str] = ()) -> Fitted:
    """Trains from the last checkpoint, or from the beginning, to the products of the phase.

    allowed: packages of the user whose callbacks the recipe may name.
    """
    seen = folder.state()
    domains = find_domains(recipe)
    L.seed_everything(recipe.seed, workers=True, verbose=False)
    saved = last_saved(folder, recipe, domains)
    subject = _subject(recipe, folder, domains, fresh=saved is None)
    module = subject.module
    data = build_data(recipe, domains, subject.added, subject.architecture)
    callbacks = [*build_callbacks(recipe, allowed), ErrorStage()]
    trainer = build_trainer(recipe, folder, domains, callbacks)
    data.check_ranks(trainer.world_size)
    if recipe.phase == "retrain" and "val" not in data.train_splits:
        data.check_split("val")
    with folder.held(was_queued_again()) if trainer.is_global_zero else nullcontext():
        if trainer.is_global_zero:
            # all parts could be made: from here on the folder is this recipe's
            folder.claim(recipe, seen)
            if subject.architecture is not None:
                subject.architecture.write(folder.architecture_file)
            if subject.finalists and not folder.has_begun:
                folder.write_finalists(subject.finalists)
            if saved is not None:
                saved.set_damaged_aside()
                print(saved.in_words(folder.path))
        trainer.loggers = build_loggers(recipe, folder, 0 if saved is None else saved.step)
        fitted = Fitted(folder, module, data, trainer)
        try:
            with faults_told(trainer, recipe):
                trainer.fit(module, data, ckpt_path=None if saved is None else saved.file)
                _write_product(recipe, fitted)
        except BaseException as error:
            if isinstance(error, UserError | ProcessLost):
                tell(error)  # closing may take long, and a launcher not wait for it
            close_wandb(trainer.loggers, whole=False)
            raise
        close_wandb(trainer.loggers, whole=True, architecture=folder.architecture_file)
    return fitted


def _subject(
    recipe: Recipe, folder: RunFolder, domains: Mapping[str, Domain], fresh: bool
) -> _Subject:
    """fresh: the run has no checkpoint to go on from; weights of other runs are taken in then."""
    if recipe.phase == "retrain":
        # its own copy once it has begun: the search's may have been searched again since
        own = folder.architecture_file
        known = own.is_file() and folder.has_begun
        architecture = Architecture.read(own) if known else choose_architecture(recipe, domains)
        retraining = build_retrain(recipe, domains, architecture)
        if recipe.retrain.paths in ("backbone", "added") and fresh:
            load_backbone(retraining, recipe, domains)
        return _Subject(retraining, architecture=architecture, added=retraining.added)
    if recipe.search.finalists is not None:
        finalists = folder.finalists() if folder.has_begun else []
        finalists = finalists or choose_finalists(recipe, domains)
        last_round = build_finalists(recipe, domains, finalists)
        if fresh and recipe.search.backbone_file is not None:
            load_reused(last_round, recipe)
        return _Subject(last_round, finalists=finalists)
    searching = build_search(recipe, domains)
    if fresh and recipe.search.supernet_file is not None:
        load_supernet(searching, recipe, domains)
    if fresh and recipe.search.common_file is not None:
        load_common_start(searching.controllers, recipe, domains)
    if fresh and recipe.search.backbone_file is not None:
        load_reused(searching, recipe)
    return _Subject(searching)


def _go_on_later(folder: RunFolder, stopped: RunStopped) -> NoReturn:
    """Says where the run stopped; where its job's time is over, has SLURM start it again.

    A job that is preempted, or requeued by a person, gets SIGTERM and is started again by SLURM
    itself; SIGUSR1 is what the job files ask for before their time is over.
    """
    if stopped.rank == 0:
        name = signal.Signals(stopped.number).name
        print(f"{folder.path} stopped at step {stopped.step} ({name}); the same command goes on")
        if stopped.number == signal.SIGUSR1 and (answer := queue_again()) is not None:
            print(answer)
    raise SystemExit(INTERRUPTED if stopped.number == signal.SIGINT else STOPPED)


def _write_product(recipe: Recipe, fitted: Fitted) -> None:
    """What the phase is for: the architecture, or the scores."""
    module, folder, data = fitted.module, fitted.folder, fitted.data
    if isinstance(module, SearchModule | FinalistsModule):
        source = {
            "run": recipe.name,
            "seed": recipe.seed,
            "step": fitted.trainer.global_step,
            "image_size": image_sizes(recipe.data, module.domains),
            "num_classes": module.num_classes,
        }
        if fitted.trainer.global_step < recipe.trainer.max_steps:
            source["stopped_early"] = True  # by a callback
        architecture = module.architecture(source)
        if fitted.trainer.is_global_zero:
            architecture.write(folder.architecture_file)
    elif isinstance(module, RetrainModule):
        splits, best = scored_splits(data), choose_checkpoint(folder)
        step = fitted.trainer.global_step
        write_scores(recipe, folder, module, data, fitted.trainer, splits, best, step)


def print_product(
    recipe: Recipe, folder: RunFolder, words: Sequence[str], allowed: Sequence[str]
) -> None:
    """A table of what the run made, and the next command to type.

    words: the command that was typed, which the next one repeats as far as it applies; allowed:
    what it allowed.
    """
    architecture, scores = Architecture.read(folder.architecture_file), folder.scores()
    # as the run knew them: its data may be elsewhere by now
    num_classes = scores.get("num_classes") or architecture.source["num_classes"]
    private = recipe.network.nodes == "private"
    costs = compare_costs(
        architecture,
        num_classes,
        image_sizes(recipe.data, num_classes),
        recipe.network.batch_norm,
    )
    if recipe.phase == "search":
        path_table(architecture, last_values(folder.metrics_file, "search/entropy")).print()
        cost_table(costs, private, "what they cost together").print()
        print(f"Architecture: {folder.architecture_file}")
        flags = [word for package in allowed for word in ("--allow", package)]
        try:
            following = ["python", "-m", "mdl.fit", *retrain_words(recipe, words), *flags]
        except UserError as error:  # the search is as good as it is
            print(f"To retrain it by what was typed, something is missing: {error}")
        else:
            print(f"Next: {shlex.join(following)}")
    else:
        if scores["splits"]:
            score_table(scores["splits"], f"{recipe.name}: averaged weights").print()
        for split, of in scores["splits"].items():
            if (points := score_of(of["accuracy"])) is not None:
                print(f"Decathlon score S on {split}: {points:.0f}")
            if (remark := at_chance_in_words(split, of)) is not None:
                print(f"At chance: {remark}")
        cost_table(costs, private, "what it costs").print()
        if recipe.retrain.paths == "added":
            print(addition_in_words(architecture, num_classes, recipe.network.batch_norm))
        print(f"Next: python -m mdl.report {shlex.quote(str(folder.path))}")


def retrain_words(recipe: Recipe, words: Sequence[str]) -> list[str]:
    """The arguments that retrain what a search found: its overlays and overrides, as typed.

    Its own first recipe gives way to recipes/mpnas_retrain.yaml; what that would set otherwise
    than the search did (data, network, space) follows as overrides. Overlays of which a retraining
    would take the length alone are left out. What a search found for a new domain is trained in the
    network of all domains.
    Raises UserError where these do not make a recipe.
    """
    first = "recipes/mpnas_retrain.yaml"
    overlays = [word for word in words if "=" not in word][1:]
    kept = [w for w in words if "=" in w and not w.startswith(_OF_THE_SEARCH)]
    more = []
    if recipe.name != "mpnas_search":
        file = RunFolder(Path(recipe.runs_dir) / recipe.name).architecture_file
        more += [f"architecture_file={file}", f"name={recipe.name}_retrain"]
    if (backbone := recipe.search.backbone_file) is not None:
        kept = [w for w in kept if not w.startswith(("data.domains=", "balancing."))]
        trained = RunFolder.of_retraining(Path(backbone)).architecture_file
        more += ["retrain.paths=added", f"retrain.backbone_file={backbone}"]
        if (new := recipe.data.domains) is not None:
            domains = sorted({*Architecture.read(trained).domains, *new})
            recipe = replace(recipe, data=replace(recipe.data, domains=domains))
    if not Path(first).is_file():
        return [first, *overlays, *kept, *more]
    overlays = [word for word in overlays if not _is_of_a_search(Path(word))]
    callbacks = load_recipe([first, *overlays]).callbacks
    kept = [w for w in kept if not _is_of_lacking(w, callbacks)]
    retrain = [first, *overlays, *kept, *more]
    return [*retrain, *overrides_between(load_recipe(retrain), recipe, _KEPT_SECTIONS)]


# what a search's command says that its retraining's does not
_OF_THE_SEARCH = ("name=", "phase=", "architecture_file=", "search.", "trainer.max_steps=")
_KEPT_SECTIONS = ("seed", "runs_dir", "data", "network", "space")


def _is_of_a_search(overlay: Path) -> bool:
    """Whether it says how to search, and of the rest only how long, and with which callbacks."""
    keys = keys_of(overlay)
    rest = {key for key in keys if not key.startswith(("search.", "callbacks."))}
    return rest <= {"trainer.max_steps"} and any(key.startswith("search.") for key in keys)


def _is_of_lacking(word: str, callbacks: Mapping[str, Any]) -> bool:
    """Whether an override is an argument of a callback that is not there."""
    parts = word.partition("=")[0].split(".")
    return parts[0] == "callbacks" and len(parts) > 2 and callbacks.get(parts[1]) is None


if __name__ == "__main__":
    sys.exit(run_command(main))
