"""Recipes from YAML files, merged from left to right, then `key=value` overrides.

What a user may have mistyped is refused here, in words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError

from mdl.data.sampling import check_sampling
from mdl.errors import UserError, nearest
from mdl.recipe import LARGEST, Recipe

_CHOICES = {
    "phase": ("search", "retrain"),
    "network.batch_norm": ("per_domain", "shared"),
    "network.batch_norm_ranks": ("all", "own"),
    "network.nodes": ("shared", "private"),
    "balancing.method": ("none", "gradnorm", "uncertainty", "dwa", "famo"),
    "balancing.initial_loss": ("measured", "log_classes"),
    "search.controllers": ("per_domain", "common"),
    "search.cost": ("macs", "latency"),
    "search.block_weights": ("own", "tied"),
    "search.start": ("blocks", "expansions"),
    "retrain.paths": ("searched", "common", "widened", "random", "backbone", "added"),
    "retrain.backbone": ("frozen", "trained"),
    # no 16-mixed: gradients are clipped here, and would be clipped before they are unscaled
    "trainer.precision": ("32-true", "bf16-mixed"),
    "wandb.mode": ("auto", "online", "offline", "disabled"),
}

_OF_FILES = re.compile(r"(_dir|_file|\.file|\.root)$")  # keys

_POSITIVE = (
    "data.image_size",
    "data.load_size",
    "data.cache_gb",
    "data.evaluation_batch_size",
    "trainer.max_steps",
    "trainer.validation_interval",
    "trainer.checkpoint_interval",
    "trainer.timeout",
    "trainer.record_interval",
    "optimizer.learning_rate",
    "balancing.learning_rate",
    "balancing.temperature",
    "balancing.interval",
    "search.learning_rate",
    "search.reward.target",
    "search.paths_per_step",
)


_POSITIVE_OR_NULL = (
    "search.candidates",
    "search.finalists",
    "trainer.threads",
    "optimizer.clip_norm",
    "search.target.params",
    "search.target.macs",
    "search.target.params_ratio",
    "search.target.macs_ratio",
)


_NOT_NEGATIVE = (
    "data.workers",
    "data.broken_images_limit",
    "optimizer.weight_decay",
    "balancing.alpha",
    "search.sharing",
    "retrain.draw",
)


_FRACTIONS = (
    "data.held_out",
    "optimizer.warmup_fraction",
    "optimizer.label_smoothing",
    "search.warmup_fraction",
    "search.beta1",
    "search.reward.baseline_momentum",
    "retrain.ema_decay",
)


def load_recipe(arguments: Sequence[str]) -> Recipe:
    """Reads YAML files and `key=value` overrides, later ones over earlier ones.

    A `~` at the beginning of a folder's or file's name is the user's home.
    Raises UserError for a missing file, a misspelt key, a wrong type or an impossible value.
    """
    files = [word for word in arguments if "=" not in word]
    overrides = [word for word in arguments if "=" in word]
    if not files:
        raise UserError("No recipe given; expected one, e.g. recipes/mpnas_search.yaml")
    merged = OmegaConf.structured(Recipe)
    for file in files:
        merged = _merge(merged, _read(Path(file)), file)
    for override in overrides:
        merged = _merge(merged, _parse(override), f"'{override}'")
    for key, value in flat(OmegaConf.to_container(merged)).items():
        # no shell does it for what follows a '='
        if _OF_FILES.search(key) and isinstance(value, str) and value.startswith("~"):
            OmegaConf.update(merged, key, str(Path(value).expanduser()))
    recipe: Recipe = _resolve(merged)
    _check_values(merged)
    return recipe


def keys_of(file: Path) -> set[str]:
    """The dotted keys that a recipe file sets. Raises UserError where it cannot be read."""
    return set(flat(OmegaConf.to_container(_read(file))))


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested mappings as dotted key -> value; an empty one is a value."""
    if not (isinstance(value, dict) and value):
        return {key: value}
    inner = [flat(of, f"{key}.{name}" if key else str(name)) for name, of in value.items()]
    return {dotted: of for part in inner for dotted, of in part.items()}


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` reads it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def overrides_between(recipe: Recipe, wanted: Recipe, sections: Sequence[str]) -> list[str]:
    """The `key=value` words that give a recipe the values of another in some sections."""
    ours, theirs = (OmegaConf.to_container(OmegaConf.structured(r)) for r in (recipe, wanted))
    assert isinstance(ours, dict) and isinstance(theirs, dict)
    words = []
    for section in sections:
        pairs = [(section, ours[section], theirs[section])]
        if isinstance(theirs[section], dict):
            pairs = [
                (f"{section}.{key}", ours[section][key], value)
                for key, value in theirs[section].items()
            ]
        words += [f"{key}={_inline(theirs)}" for key, ours, theirs in pairs if ours != theirs]
    return words


def _inline(value: Any) -> str:
    """A value as the right side of an override."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=2**20)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _read(file: Path) -> DictConfig:
    if not file.is_file():
        if str(file).startswith("-"):
            raise UserError(f"Unknown option '{file}'; known: --print-recipe, --allow PACKAGE")
        recipes = Path("recipes").glob("*.yaml")
        known = [str(other) for other in recipes if not other.name.startswith("compare")]
        hint = nearest(str(file), known) if known else "check the path"
        raise UserError(f"No recipe at {file}; {hint}")
    try:
        content = OmegaConf.load(file)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file} is no YAML that can be read: {said}") from error
    if not isinstance(content, DictConfig):
        raise UserError(f"{file} holds a list; expected 'key: value' pairs.")
    return content


def _parse(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except (YAMLError, OmegaConfBaseException) as error:
        said = " ".join(str(error).split())
        raise UserError(f"The override '{override}' cannot be read: {said}") from error


def _merge(merged: DictConfig, part: DictConfig, origin: str) -> DictConfig:
    _check_keys(part, Recipe, "", origin)
    try:
        # what was merged so far is not used again, and to copy it took most of the time
        together = OmegaConf.unsafe_merge(merged, part)
    except ConfigKeyError as error:
        raise UserError(f"Unknown recipe key in {origin}: {error.full_key}") from error
    except OmegaConfBaseException as error:
        raise UserError(_wrong_type(error, origin)) from error
    assert isinstance(together, DictConfig)
    return together


def _wrong_type(error: OmegaConfBaseException, origin: str) -> str:
    first_line = str(error).splitlines()[0]
    return f"Recipe key '{error.full_key}' in {origin} has a wrong type: {first_line}"


def _check_keys(part: Any, schema: type, where: str, origin: str) -> None:
    """Raises UserError with the nearest right key for the first misspelt one."""
    if not isinstance(part, DictConfig):
        raise UserError(f"Recipe key '{where.rstrip('.')}' in {origin} has a wrong type: {part}")
    known = {f.name: f for f in fields(schema)}
    for key in map(str, part):
        full = f"{where}{key}"
        if key in ("rows", "seeds") and not where:
            raise UserError(
                f"{origin} is of a comparison ('{key}'), not of a run: python -m mdl.compare FILE"
            )
        if key not in known:
            raise UserError(f"Unknown recipe key '{full}' in {origin}; {nearest(key, list(known))}")
        inner = _NESTED.get(full)
        if inner is not None:
            _check_keys(part._get_node(key), inner, f"{full}.", origin)


def _nested(schema: type, where: str = "") -> dict[str, type]:
    """Dotted key -> dataclass, for every key that is a section."""
    found: dict[str, type] = {}
    for f in fields(schema):
        if is_dataclass(f.default_factory):
            section: Any = f.default_factory
            found[f"{where}{f.name}"] = section
            found |= _nested(section, f"{where}{f.name}.")
    return found


_NESTED = _nested(Recipe)


def _resolve(merged: DictConfig) -> Recipe:
    try:
        OmegaConf.resolve(merged)
        recipe = OmegaConf.to_object(merged)
    except InterpolationKeyError as error:
        raise UserError(f"The recipe refers to a key that is not there: {error}") from error
    except MissingMandatoryValue as error:
        raise UserError(
            f"The recipe lacks '{error.full_key}'. Start from recipes/mpnas_search.yaml or "
            "recipes/mpnas_retrain.yaml, which set it."
        ) from error
    except OmegaConfBaseException as error:
        raise UserError(f"The recipe cannot be resolved: {error}") from error
    assert isinstance(recipe, Recipe)
    return recipe


def _check_values(merged: DictConfig) -> None:
    for key, choices in _CHOICES.items():
        if (value := OmegaConf.select(merged, key)) not in choices:
            raise UserError(f"{key} is '{value}'; expected one of {', '.join(choices)}.")
    numbers = (*_POSITIVE, *_POSITIVE_OR_NULL, *_NOT_NEGATIVE, *_FRACTIONS, "search.reward.beta")
    for key in numbers:
        if (value := OmegaConf.select(merged, key)) is not None and not isfinite(value):
            raise UserError(f"{key} is {value}; expected a finite number.")
    for key in _POSITIVE:
        if (value := OmegaConf.select(merged, key)) <= 0:
            raise UserError(f"{key} is {value}; expected a number above 0.")
    for key in _FRACTIONS:
        if not 0 <= (value := OmegaConf.select(merged, key)) < 1:
            raise UserError(f"{key} is {value}; expected at least 0 and below 1.")
    for key in _NOT_NEGATIVE:
        if (value := OmegaConf.select(merged, key)) < 0:
            raise UserError(f"{key} is {value}; expected 0 or more.")
    for key in _POSITIVE_OR_NULL:
        if (value := OmegaConf.select(merged, key)) is not None and value <= 0:
            raise UserError(f"{key} is {value}; expected a number above 0, or null for none.")
    if merged.search.reward.beta > 0:
        raise UserError(
            f"search.reward.beta is {merged.search.reward.beta}; expected 0 or less: it weighs how "
            "far a path's cost is from the target, which is to be small."
        )
    if not 0 <= merged.seed < 2**32:
        raise UserError(f"seed is {merged.seed}; expected at least 0 and below 2**32.")
    _check_devices(merged.trainer.devices)
    _check_domains(merged.data.domains)
    for key in ("data.batch_size", "search.held_out_batch_size"):
        if (value := OmegaConf.select(merged, key)) < 2:
            raise UserError(f"{key} is {value}; batch norm needs at least 2 images of a domain.")
    frozen = merged.retrain.paths == "backbone" and merged.retrain.backbone == "frozen"
    if merged.balancing.method == "gradnorm" and merged.phase == "retrain" and frozen:
        raise UserError(
            "balancing.method is gradnorm, which compares the domains' gradients at weights that "
            "they share; a frozen backbone has none. Set balancing.method=none."
        )
    if merged.balancing.method == "gradnorm" and merged.network.nodes == "private":
        raise UserError(
            "balancing.method is gradnorm, which compares the domains' gradients at weights that "
            "they share; with network.nodes=private they share none. Set balancing.method to "
            "uncertainty, dwa, famo or none."
        )
    if merged.trainer.compile and merged.phase == "search":
        raise UserError(
            "trainer.compile is true; a search takes other paths at every step, each of which "
            "would be compiled anew. Set trainer.compile=false; the retraining can be compiled."
        )
    if merged.trainer.compile and merged.balancing.method == "gradnorm":
        raise UserError(
            "trainer.compile is true and balancing.method gradnorm, which looks into the network's "
            "pass, and a compiled one cannot be looked into. Set one of them otherwise."
        )
    if merged.balancing.method == "gradnorm" and merged.search.backbone_file is not None:
        raise UserError(
            "balancing.method is gradnorm, which compares the domains' gradients at weights that "
            "they share; with search.backbone_file these rest. Set balancing.method=none."
        )
    _check_search(merged)
    check_sampling(merged.data.sampling)
    _check_per_domain(merged)
    _check_retrained_paths(merged)
    splits = list(merged.data.train_splits)
    if splits not in (["train"], ["train", "val"]):
        raise UserError(f"data.train_splits is {splits}; expected [train] or [train, val].")
    if merged.phase == "search" and splits != ["train"]:
        raise UserError("data.train_splits: a search sees no validation images; expected [train].")
    for key in ("name", "runs_dir"):
        if not str(OmegaConf.select(merged, key)).strip():
            raise UserError(f"{key} is empty; expected a name.")
    if not re.fullmatch(r"[\w][\w.-]*", merged.name):
        raise UserError(
            f"name is '{merged.name}'; expected letters, digits, '_', '.' and '-': it names the "
            "run's folder."
        )


def _check_domains(chosen: Any) -> None:
    names = isinstance(chosen, ListConfig) and all(isinstance(name, str) for name in chosen)
    if chosen not in (None, LARGEST) and not (names and len(chosen)):
        raise UserError(
            f"data.domains is {chosen}; expected names of domains in brackets, '{LARGEST}' for the "
            "one with the most training images, or null for all."
        )


def _check_search(merged: DictConfig) -> None:
    search = merged.search
    for key in ("params", "macs"):
        if search.target[key] is not None and search.target[f"{key}_ratio"] is not None:
            raise UserError(
                f"search.target.{key} and search.target.{key}_ratio are both given; expected one. "
                f"Set search.target.{key}_ratio=null."
            )
    _check_latency(search)
    if search.backbone_file is not None:
        if search.target.params_ratio is not None:
            raise UserError(
                f"search.target.params_ratio is {search.target.params_ratio}, and "
                "search.backbone_file is given; what is added to a network is asked for in "
                "numbers: search.target.params"
            )
        for key in ("supernet_file", "candidates", "controllers_file"):
            if search[key] is not None:
                raise UserError(
                    f"search.backbone_file and search.{key} are both given; expected one of them. "
                    f"Set search.{key}=null."
                )
        if search.block_weights != "own":
            raise UserError(
                "search.backbone_file is given and search.block_weights is "
                f"{search.block_weights}: a trained network's blocks have weights of their own. "
                "Expected own."
            )
    _check_finalists(merged)
    _check_common_start(search)
    if search.candidates is not None and search.controllers == "common":
        raise UserError(
            f"search.candidates is {search.candidates}, but search.controllers is 'common': random "
            "networks have a path per domain. Set search.controllers=per_domain."
        )
    if search.new_blocks and search.backbone_file is None:
        raise UserError(
            "search.new_blocks is true, but search.backbone_file is null: there is no trained "
            "network that blocks could be added to. Set search.new_blocks=false."
        )
    if search.candidates is not None and search.paths_per_step < 2:
        raise UserError(
            f"search.candidates is {search.candidates} and search.paths_per_step "
            f"{search.paths_per_step}; random networks are compared with others on the same "
            "images: expected 2 or more a step, e.g. recipes/frozen_search.yaml."
        )
    if search.candidates is not None:
        for key in ("supernet_file", "target.params", "target.macs"):
            alternative = OmegaConf.select(search, f"{key}_ratio")
            if OmegaConf.select(search, key) is None and alternative is None:
                raise UserError(
                    f"search.candidates is {search.candidates}, but search.{key} is null; expected "
                    "a trained super-network to reward the random networks on, and both sizes "
                    "that they are to have."
                )
    if search.supernet_file is not None and merged.balancing.method != "none":
        raise UserError(
            f"balancing.method is {merged.balancing.method}, but search.supernet_file is given: "
            "no weights are trained, there is nothing to balance. Set balancing.method=none."
        )


def _check_latency(search: Any) -> None:
    latency = search.latency
    if search.cost != "latency":
        for key in ("file", "budget", "runtime"):
            if latency[key] is not None:
                raise UserError(
                    f"search.latency.{key} is {latency[key]}, but search.cost is {search.cost}; "
                    "expected search.cost=latency, or null."
                )
        return
    if latency.file is None:
        raise UserError(
            "search.cost is latency, but search.latency.file is null; expected a table: "
            "python -m mdl.profile RECIPE --out TABLE"
        )
    budgets = (
        latency.budget.values() if isinstance(latency.budget, DictConfig) else [latency.budget]
    )
    for budget in budgets:
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
            raise UserError(
                f"search.latency.budget is {latency.budget}; expected milliseconds above 0, for "
                "all domains or as {domain: milliseconds}."
            )
    for key in ("candidates", "finalists"):
        if search[key] is not None:
            raise UserError(
                f"search.cost is latency and search.{key} is {search[key]}, whose networks come "
                "without a budget of time. Set search.cost=macs."
            )
    for key in ("macs", "macs_ratio"):
        if search.target[key] is not None:
            raise UserError(
                f"search.cost is latency and search.target.{key} is {search.target[key]}; expected "
                f"one of the two. Set search.target.{key}=null; search.target.params may stay."
            )


def _check_finalists(merged: DictConfig) -> None:
    search = merged.search
    if search.finalists is None:
        if search.controllers_file is not None:
            raise UserError(
                f"search.controllers_file is {search.controllers_file}, but search.finalists is "
                "null; expected how many networks are to be trained, e.g. search.finalists=8"
            )
        return
    if search.finalists < 2:
        raise UserError(f"search.finalists is {search.finalists}; expected 2 or more to choose of.")
    for key in ("supernet_file", "candidates"):
        if search[key] is not None:
            raise UserError(
                f"search.finalists and search.{key} are both given: finalists are trained from "
                f"scratch, without a super-network. Set search.{key}=null, or "
                "search.finalists=null."
            )
    if merged.balancing.method != "none":
        raise UserError(
            f"balancing.method is {merged.balancing.method}, which weighs the losses of one "
            f"network; search.finalists trains {search.finalists}. Set balancing.method=none."
        )
    if search.backbone_file is not None:
        if search.target.params is None:
            raise UserError(
                f"search.finalists is {search.finalists} and search.backbone_file is given, but "
                "search.target.params is null; expected how many parameters may be added."
            )
        return
    for key in ("params", "macs"):
        known = search.target[key] is not None or search.target[f"{key}_ratio"] is not None
        if search.controllers_file is None and not known:
            raise UserError(
                f"search.finalists is {search.finalists}, but neither search.controllers_file nor "
                f"search.target.{key} is given; expected a finished search's checkpoint, or both "
                "sizes that random finalists are to have."
            )
    if search.controllers_file is None and search.controllers == "common":
        raise UserError(
            f"search.finalists is {search.finalists} of random networks, but search.controllers is "
            "'common': these have a path per domain. Set search.controllers=per_domain, or give "
            "search.controllers_file."
        )


def _check_common_start(search: Any) -> None:
    if search.common_file is None:
        return
    if search.controllers == "common":
        raise UserError(
            f"search.common_file is {search.common_file}, but search.controllers is common: it is "
            "where the controllers of single domains set out from. Set search.common_file=null."
        )
    for key in ("candidates", "finalists"):
        if search[key] is not None:
            raise UserError(
                f"search.common_file is {search.common_file} and search.{key} is {search[key]}: "
                "no controllers are searched that could set out from it. Set "
                "search.common_file=null."
            )


def _check_devices(devices: Any) -> None:
    """Raises UserError where it is none of Lightning's ways to say which devices."""
    listed = devices.split(",") if isinstance(devices, str) else devices
    if isinstance(listed, ListConfig | list):
        good = len(listed) > 0 and all(str(one).strip().isdecimal() for one in listed)
    else:
        good = isinstance(devices, int) and not isinstance(devices, bool) and devices >= 1
    if not good and devices not in ("auto", -1, "-1"):
        raise UserError(
            f"trainer.devices is {devices!r}; expected how many, a list of their numbers such as "
            "[0,2], or auto, which is all that are there."
        )


def _check_retrained_paths(merged: DictConfig) -> None:
    paths, file = merged.retrain.paths, merged.retrain.backbone_file
    if merged.phase == "retrain" and merged.retrain.draw and paths != "random":
        raise UserError(
            f"retrain.draw is {merged.retrain.draw}, which of a seed's random paths, but "
            f"retrain.paths is '{paths}'; expected random, or retrain.draw=0."
        )
    if paths not in ("backbone", "added") and merged.retrain.backbone != "frozen":
        raise UserError(
            f"retrain.backbone is {merged.retrain.backbone}, but retrain.paths is '{paths}', which "
            "reuses none; expected retrain.paths=backbone with a retrain.backbone_file."
        )
    reuses = merged.search.backbone_file is not None
    if merged.retrain.common_file is not None and paths not in ("common", "widened"):
        raise UserError(
            f"retrain.common_file is {merged.retrain.common_file}, but retrain.paths is "
            f"'{paths}'; expected common or widened, which take the path of that file, or no file."
        )
    if paths in ("backbone", "added") and file is None:
        raise UserError(
            f"retrain.paths is '{paths}', but the recipe names no retrain.backbone_file; expected "
            "a checkpoint of a retraining, e.g. runs/one_domain/checkpoints/best.ckpt"
        )
    if paths not in ("backbone", "added") and file is not None:
        raise UserError(
            f"retrain.backbone_file is {file}, but retrain.paths is '{paths}'; expected "
            "retrain.paths=backbone or added, which take paths and weights from that file, or no "
            "file."
        )
    if paths == "added" and merged.retrain.backbone != "frozen":
        raise UserError(
            f"retrain.backbone is {merged.retrain.backbone}, but retrain.paths is 'added': a "
            "domain is added to a network that rests. Expected retrain.backbone=frozen."
        )
    if paths == "added" and merged.balancing.method != "none":
        raise UserError(
            f"balancing.method is {merged.balancing.method}, but retrain.paths is 'added': the "
            "domains that rest have no losses to balance. Set balancing.method=none."
        )
    for key, uses in (("retrain.paths", paths == "added"), ("search.backbone_file", reuses)):
        if uses and merged.network.batch_norm != "per_domain":
            raise UserError(
                f"{key} adds a domain to a trained network, and network.batch_norm is "
                f"{merged.network.batch_norm}: what all domains share would change for the others. "
                "Expected network.batch_norm=per_domain."
            )
    if (paths in ("backbone", "added") or reuses) and merged.network.nodes != "shared":
        raise UserError(
            f"A trained network is reused, but network.nodes is '{merged.network.nodes}'; a "
            "backbone is what all domains have in common: expected network.nodes=shared."
        )


def _check_per_domain(merged: DictConfig) -> None:
    for name, of in merged.data.per_domain.items():
        for key, least in (("image_size", 1), ("load_size", 1), ("batch_size", 2)):
            if (value := of[key]) is not None and value < least:
                raise UserError(
                    f"data.per_domain.{name}.{key} is {value}; expected {least} or more."
                )
