"""Reads comparison files: what a user may have mistyped is refused here, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mdl.comparison.comparison import Comparison, NeededRun, Row, Try
from mdl.errors import UserError, nearest

_WORD_LISTS = ("settings", "search_settings", "retrain_settings")
_NUMBERS = ("tuning_seed", "workers", "threads")
_NOT_PLAIN = ("bars", "overrides")  # fields that are no keys of the file
_NAMES = ("name", "runs_dir", "search", "retrain", "baseline", "reference", "main")


def read_comparison(arguments: Sequence[str]) -> Comparison:
    """Reads the file and what is said beside it.

    `key=value` of a plain key (seeds, workers, name, ...) replaces the file's; a key with a dot
    (data.root=...) is a setting of every run, over all but those of its own row.
    Raises UserError for a missing file, a misspelt key, a wrong type or an unknown row or run.
    """
    files = [word for word in arguments if "=" not in word]
    if len(files) != 1:
        raise UserError(
            f"{len(files)} comparison files given; expected one, e.g. recipes/compare.yaml"
        )
    content = _read(Path(files[0]))
    _check_keys(content, [*_keys(Comparison, *_NOT_PLAIN), "figures"], files[0])
    words = [word for word in arguments if "=" in word]
    overrides = tuple(word for word in words if "." in word.partition("=")[0])
    for word in words:
        if word not in overrides:
            _replace(content, word)
    return _comparison(content, overrides)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        known = [str(other) for other in Path("recipes").glob("compare*.yaml")]
        raise UserError(f"No comparison at {file}; {nearest(str(file), known)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML that can be read: {error}") from error
    return _mapping(content, str(file))


def _replace(content: dict[str, Any], word: str) -> None:
    key, _, value = word.partition("=")
    known = _keys(Comparison, *_NOT_PLAIN, "rows", "runs")
    if key not in known:
        hint = nearest(key, known)
        raise UserError(
            f"Unknown key '{key}' of a comparison; {hint}{'' if hint.endswith('?') else '.'} A "
            "setting of every run has a dot in its key, e.g. data.root=data/mine"
        )
    try:
        content[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"The override '{word}' cannot be read: {error}") from error


def _comparison(content: dict[str, Any], overrides: tuple[str, ...]) -> Comparison:
    given: dict[str, Any] = {}
    for key in _WORD_LISTS:
        given[key] = _words(content.get(key), key)
    for key in _NUMBERS:
        if key in content:
            given[key] = _number(content[key], key)
    for key in _NAMES:
        if content.get(key) is not None:
            given[key] = _name(content[key], key)
    if "name" not in given:
        raise UserError("The comparison has no 'name'; expected one: it names its folder.")
    if "seeds" in content:
        given["seeds"] = tuple(_number(s, "seeds") for s in _list(content["seeds"], "seeds"))
        given.setdefault("tuning_seed", next(iter(given["seeds"]), 0))
    runs = _mapping(content.get("runs"), "runs")
    rows = _mapping(content.get("rows"), "rows")
    figures = _mapping(content.get("figures"), "figures")
    _check_keys(figures, ["bars"], "figures")
    bars = _list(figures.get("bars"), "figures.bars")
    return Comparison(
        runs={name: _run(of, f"runs.{name}") for name, of in runs.items()},
        rows={name: _row(name, of) for name, of in rows.items()},
        bars=tuple(_words(of, "figures.bars") for of in bars),
        overrides=overrides,
        **given,
    )


def _run(content: Any, where: str) -> NeededRun:
    of = _mapping(content, where)
    _check_keys(of, _keys(NeededRun), where)
    search = _optional_name(of, "search", where)
    phase = _name(of.get("phase", "search"), f"{where}.phase")
    return NeededRun(phase, _words(of.get("settings"), f"{where}.settings"), search)


def _row(name: str, content: Any) -> Row:
    where = f"rows.{name}"
    of = _mapping(content, where)
    _check_keys(of, _keys(Row), where)
    return Row(
        label=_optional_name(of, "label", where) or name,
        search=_optional_name(of, "search", where),
        like=_optional_name(of, "like", where),
        settings=_words(of.get("settings"), f"{where}.settings"),
        tries=tuple(_try(one, f"{where}.tries") for one in _list(of.get("tries", [[]]), where)),
        draws=_number(of.get("draws", 1), f"{where}.draws"),
        group=_optional_name(of, "group", where),
    )


def _try(content: Any, where: str) -> Try:
    """A list of settings, or {search: ..., settings: [...]}."""
    if not isinstance(content, dict):
        return Try(_words(content, where))
    _check_keys(content, _keys(Try), where)
    return Try(_words(content.get("settings"), where), _optional_name(content, "search", where))


def _keys(of: type, *without: str) -> list[str]:
    return [f.name for f in fields(of) if f.name not in without]


def _check_keys(content: Mapping[str, Any], known: list[str], where: str) -> None:
    for key in content:
        if key == "phase" and key not in known:
            raise UserError(f"{where} is a run's recipe ('phase'): python -m mdl.fit FILE")
        if key not in known:
            raise UserError(f"Unknown key '{key}' in {where}; {nearest(str(key), known)}")


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{where} is {content!r}; expected 'key: value' pairs.")
    return {str(key): value for key, value in content.items()}


def _list(content: Any, where: str) -> list[Any]:
    if content is None:
        return []
    if not isinstance(content, list):
        raise UserError(f"{where} is {content!r}; expected a list.")
    return content


def _words(content: Any, where: str) -> tuple[str, ...]:
    words = _list(content, where)
    for word in words:
        if not isinstance(word, str):
            raise UserError(
                f"{where} holds {word!r}; expected words of mdl.fit, e.g. trainer.max_steps=400 "
                "(in quotes where they have braces, brackets or ': ')."
            )
    return tuple(words)


def _number(content: Any, where: str) -> int:
    if not isinstance(content, int) or isinstance(content, bool):
        raise UserError(f"{where} is {content!r}; expected a whole number.")
    return content


def _name(content: Any, where: str) -> str:
    if isinstance(content, dict | list):
        raise UserError(f"{where} is {content!r}; expected a name.")
    return str(content)


def _optional_name(content: Mapping[str, Any], key: str, where: str) -> str | None:
    value = content.get(key)
    return None if value is None else _name(value, f"{where}.{key}")
