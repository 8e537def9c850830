"""What a search found: one path per domain through one space, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from mdl.errors import UserError
from mdl.space.search_space import ZERO, Block, Path, SearchSpace
from mdl.whole_files import write_text

FORMAT = 1


@dataclass(frozen=True)
class Architecture:
    """Domain -> path. `source` says where it came from (run, step, seed, ...)."""

    space: SearchSpace
    paths: Mapping[str, Path]
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for domain, path in self.paths.items():
            self.space.check_path(path, domain)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.paths)

    def check_fits(self, space: SearchSpace, domains: Sequence[str]) -> None:
        """Raises UserError with the first difference from the given space and domains."""
        self.check_space(space)
        self.check_domains(domains)

    def check_space(self, space: SearchSpace) -> None:
        """Raises UserError with the first difference from the given space."""
        if (difference := first_difference(self.space.table(), space.table())) is not None:
            where, own, other = difference
            raise UserError(
                f"The architecture belongs to another space: its space.{where} is {own}, the "
                f"recipe's is {other}. Use the space that it was searched in, or search again."
            )

    def check_domains(self, domains: Sequence[str]) -> None:
        """Raises UserError with the first domain that only one side has."""
        for domain in domains:
            if domain not in self.paths:
                raise UserError(
                    f"The architecture has no path for domain '{domain}' of the data; it has "
                    f"{', '.join(self.paths)}. Search over these domains, or set data.domains."
                )
        for domain in self.paths:
            if domain not in domains:
                raise UserError(
                    f"The architecture has a path for domain '{domain}', which the data lack; "
                    f"the data have {', '.join(domains)}. Check data.root and data.domains."
                )

    def common_path(self) -> Path:
        """The one path of all domains. Raises UserError where they have different ones."""
        first, *others = self.paths
        for other in others:
            if self.paths[other] != self.paths[first]:
                raise UserError(
                    f"The architecture leads '{first}' and '{other}' along different paths; "
                    "expected one common path of all domains, as search.controllers=common or "
                    "retrain.paths=common makes it."
                )
        return self.paths[first]

    def write(self, file: FilePath) -> None:
        """Writes a file that a person can read: one line per layer."""
        content = dumps(
            {
                "format": FORMAT,
                "space_fingerprint": self.space.fingerprint,
                "source": dict(self.source),
                "paths": {domain: self._named_choices(p) for domain, p in self.paths.items()},
                "space": self.space.table(),
            }
        )
        write_text(file, content)

    def _named_choices(self, path: Path) -> dict[str, Any]:
        return {
            layer.name: "zero" if block == ZERO else vars(block)
            for layer, block in zip(self.space.layers, path, strict=True)
        }

    @classmethod
    def read(cls, file: FilePath) -> Architecture:
        """Raises UserError where the file is missing, unreadable or inconsistent."""
        if not file.is_file():
            raise UserError(
                f"No architecture file at {file}. A finished search writes it: "
                "python -m mdl.fit recipes/mpnas_search.yaml"
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UserError(
                    f"{file} has format {content['format']}; this version of mdl reads format "
                    f"{FORMAT}. Use the version that wrote it, or search again."
                )
            space = SearchSpace.from_table(content["space"])
            fingerprint, named = content["space_fingerprint"], content["paths"]
            paths = {d: _read_path(space, d, choices) for d, choices in named.items()}
        except (
            KeyError,
            TypeError,
            AttributeError,
            json.JSONDecodeError,
            UnicodeDecodeError,
        ) as error:  # the last of a checkpoint, say
            raise UserError(
                f"{file} is not an architecture file: {type(error).__name__}: {error}. "
                "Expected the file that a search writes."
            ) from error
        if fingerprint != space.fingerprint:
            raise UserError(
                f"{file} was edited: its space has fingerprint {space.fingerprint}, the file "
                f"says {fingerprint}. Restore the file that the search wrote."
            )
        return cls(space, paths, content.get("source", {}))


def similarity(paths: Mapping[str, Path]) -> list[list[float]]:
    """Jaccard score of the searched nodes of every two domains' paths, [domains, domains].

    Zero, stem and head are left out; two paths without a node count as equal (1).
    """
    nodes = [
        {(index, block) for index, block in enumerate(path) if block != ZERO}
        for path in paths.values()
    ]
    return [[_jaccard(one, other) for other in nodes] for one in nodes]


def _jaccard(one: set[tuple[int, Block]], other: set[tuple[int, Block]]) -> float:
    union = one | other
    return len(one & other) / len(union) if union else 1.0


def _read_path(space: SearchSpace, domain: str, choices: Mapping[str, Any]) -> Path:
    expected = [layer.name for layer in space.layers]
    if list(choices) != expected:
        raise UserError(
            f"The path of '{domain}' names layers {', '.join(choices)}; "
            f"expected {', '.join(expected)}."
        )
    return tuple(ZERO if choice == "zero" else Block(**choice) for choice in choices.values())


def first_difference(one: Any, other: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(one) + [key for key in other if key not in one]
        pairs = [(f"{where}.{key}".lstrip("."), one.get(key), other.get(key)) for key in keys]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else (where, one, other)
    differences = (first_difference(a, b, inner) for inner, a, b in pairs)
    return next((found for found in differences if found is not None), None)


def dumps(content: dict[str, Any]) -> str:
    """JSON with objects opened down to the level of a layer's choices, which stay on a line."""

    def lines(value: Any, indent: int) -> str:
        nested = isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values())
        if not nested and not (isinstance(value, dict) and "1.1" in value):
            return json.dumps(value)
        pad = " " * (indent + 2)
        body = ",\n".join(f"{pad}{json.dumps(k)}: {lines(v, indent + 2)}" for k, v in value.items())
        return "{\n" + body + "\n" + " " * indent + "}"

    return lines(content, 0) + "\n"
