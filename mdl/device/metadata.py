"""What travels with an exported network: classes, and what an image has to be made into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mdl.errors import UserError, nearest

FORMAT = 1
KEY = "metadata.json"
"""Its name within a file of a runtime; no domain's, which holds no dot."""
TOGETHER = "all.domains"
"""The name of what answers for all domains on one input; no domain's either."""


@dataclass(frozen=True)
class DomainMetadata:
    """One domain as a device needs it. A network's input is colours in 0 to 255, [n, 3, s, s].

    mean, std: of RGB in [0, 1]; the exported network normalises by them itself.
    """

    classes: tuple[str, ...]  # by index
    image_size: int  # side s of the square that is cut out of the middle, px
    load_size: int  # side of the square that it is cut out of, px
    packed_size: int  # to which the shorter side of a larger image is scaled down before, px
    fit: str  # how an image becomes square: 'crop' its middle, or 'stretch' it
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Equal for domains that can have an input in common."""
        return self.image_size, self.load_size, self.packed_size


@dataclass(frozen=True)
class Metadata:
    """The domains of an exported network, and where it came from (run, checkpoint, step, ...)."""

    domains: Mapping[str, DomainMetadata]
    source: Mapping[str, Any]

    def dumps(self) -> str:
        content = {
            "format": FORMAT,
            "source": dict(self.source),
            "domains": {name: asdict(of) for name, of in self.domains.items()},
        }
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def loads(cls, text: str, origin: object) -> Metadata:
        """Raises UserError where the text, found in `origin`, is not what an export wrote."""
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise UserError(
                    f"{origin} has metadata of format {content['format']}; this version of mdl "
                    f"reads format {FORMAT}. Export again, or use the version that wrote it."
                )
            domains = {name: _domain_from(of) for name, of in content["domains"].items()}
            return cls(domains, content["source"])
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{origin} holds no metadata that can be read: {type(error).__name__}: {error}. "
                "Expected a file that python -m mdl.export wrote; export again."
            ) from error

    def of(self, *names: str) -> Metadata:
        """The same with these domains only."""
        return Metadata({name: self.domain(name) for name in names}, self.source)

    def alike(self) -> list[str]:
        """The domains that one input can serve: whose images have the sizes of the first one's."""
        first = next(iter(self.domains.values())).sizes
        return [name for name, of in self.domains.items() if of.sizes == first]

    def domain(self, name: str) -> DomainMetadata:
        """Raises UserError where there is no such domain."""
        if name not in self.domains:
            raise UserError(
                f"There is no domain '{name}' in this model; {nearest(name, list(self.domains))}"
            )
        return self.domains[name]


def _domain_from(content: Mapping[str, Any]) -> DomainMetadata:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return DomainMetadata(**values)
