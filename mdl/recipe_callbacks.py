"""The callbacks that a recipe names: what it may name, and what is made of it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from math import isfinite
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    ProgressBar,
    StochasticWeightAveraging,
)

from mdl.errors import UserError, nearest
from mdl.recipe import Recipe

# dotted names of a recipe may lead to these packages, and to what --allow names
_PACKAGES = ("mdl", "callbacks", "lightning")


def build_callbacks(recipe: Recipe, allowed: Sequence[str] = ()) -> list[L.Callback]:
    """The recipe's callbacks, by dotted name. Raises UserError where one cannot be made.

    allowed: packages or modules of the user that recipes may name, beside this project's own.
    """
    wanted = {name: of for name, of in recipe.callbacks.items() if of is not None}
    built = {name: _build_callback(name, of, allowed) for name, of in wanted.items()}
    for name, callback in built.items():
        _check_fits(name, callback, recipe.phase)
        if getattr(callback, "sets_domain_weights", False) and recipe.balancing.method != "none":
            raise UserError(
                f"callbacks.{name} and balancing.method={recipe.balancing.method} would both set "
                f"the domains' weights. Set callbacks.{name}=null, or balancing.method=none."
            )
    return list(built.values())


def _build_callback(name: str, settings: Any, allowed: Sequence[str]) -> L.Callback:
    key = f"callbacks.{name}"
    if not isinstance(settings, dict):
        raise UserError(f"{key} is {settings!r}; expected {{class: dotted.name, ...}} or null.")
    arguments = dict(settings)
    factory = _find_callback(f"{key}.class", str(arguments.pop("class", "")), allowed)
    known = inspect.signature(factory).parameters
    for argument, value in arguments.items():
        if argument not in known:
            hint = nearest(argument, list(known))
            raise UserError(f"Unknown recipe key '{key}.{argument}'; {hint}")
        _check_number(f"{key}.{argument}", value, known[argument].annotation)
    try:
        callback: L.Callback = factory(**arguments)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"{key} cannot be made: {error}") from error
    return callback


def _check_fits(name: str, callback: L.Callback, phase: str) -> None:
    """Raises UserError for what this project's way of training has no place for."""
    kind = type(callback).__name__
    if isinstance(callback, _OF_AUTOMATIC_OPTIMIZATION):
        raise UserError(
            f"callbacks.{name} is a {kind}, which changes optimizer, network or batches under way; "
            f"steps are made by hand here. Set callbacks.{name}=null, and in the recipe what it is "
            "for (optimizer, retrain, data)."
        )
    if isinstance(callback, ProgressBar):
        raise UserError(
            f"callbacks.{name} is a {kind}; a run has a progress bar of its own, "
            f"callbacks.phase_bar.PhaseBar. Set callbacks.{name}=null."
        )
    if isinstance(callback, EarlyStopping) and phase == "search":
        raise UserError(
            f"callbacks.{name} is a {kind}, which looks at validations; a search has none. Set "
            f"callbacks.{name}=null, or a lower trainer.max_steps."
        )


_OF_AUTOMATIC_OPTIMIZATION = (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)


def _check_number(key: str, value: Any, annotation: Any) -> None:
    """Raises UserError where a callback asks for a number by its annotation and is given none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation in (int, "int") and not (is_number and isinstance(value, int)):
        raise UserError(f"{key} is {value!r}; expected a whole number.")
    if annotation in (float, "float") and not (is_number and isfinite(value)):
        raise UserError(f"{key} is {value!r}; expected a number.")


def _find_callback(key: str, dotted: str, allowed: Sequence[str]) -> type[L.Callback]:
    """The class of a dotted name.

    A recipe may come from anywhere: nothing is imported but from known packages, and nothing is
    called but classes of callbacks.
    """
    packages = [*_PACKAGES, *allowed]
    module_name, _, class_name = dotted.rpartition(".")
    if not any(module_name == of or module_name.startswith(f"{of}.") for of in packages):
        raise UserError(
            f"{key} is '{dotted}'; expected a dotted name in {', '.join(packages)}, e.g. "
            "callbacks.abdp.ABDP. A package of your own is allowed by the command: --allow PACKAGE"
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key} is '{dotted}', which cannot be found: {error}") from error
    if not (isinstance(found, type) and issubclass(found, L.Callback)):
        raise UserError(
            f"{key} is '{dotted}', which is no class of callbacks; expected one that is made of "
            "lightning.Callback, e.g. callbacks.abdp.ABDP"
        )
    return found
