"""The callbacks that a recipe names: what it may name, and what is made of it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

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
    known = list(inspect.signature(factory).parameters)
    for argument in arguments:
        if argument not in known:
            raise UserError(f"Unknown recipe key '{key}.{argument}'; {nearest(argument, known)}")
    try:
        callback: L.Callback = factory(**arguments)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"{key} cannot be made: {error}") from error
    return callback


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
