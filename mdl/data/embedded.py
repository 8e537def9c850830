"""The embedded default data: the generated domains, as a source for the packer."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from mdl.data.domains import FILE
from mdl.data.miniature import DOMAINS, MiniatureDomain, miniature_image
from mdl.data.packing import pack_domains
from mdl.data.source import DomainSource

ROOT = "data/miniature"  # the data.root that is made on first use
SEED = 0


@dataclass(frozen=True)
class GeneratedImage:
    """An image that is drawn when it is packed."""

    domain_index: int  # domains hold functions, which do not travel between processes
    split: str
    index: int
    seed: int

    @property
    def domain(self) -> MiniatureDomain:
        return DOMAINS[self.domain_index]

    @property
    def label(self) -> int:
        return self.index % len(self.domain.classes)

    @property
    def id(self) -> int:
        return -1

    @property
    def version(self) -> str:
        return str(self.seed)

    @property
    def name(self) -> str:
        return f"{self.domain.name}/{self.split}/{self.index}"

    def load(self) -> bytes:
        image, label = miniature_image(self.domain, self.split, self.index, self.seed)
        assert label == self.label
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


def generated_domains(seed: int = SEED) -> list[DomainSource]:
    """The generated domains, drawn by `seed` when they are packed."""
    return [
        DomainSource(
            domain.name,
            domain.classes,
            {
                split: [GeneratedImage(number, split, index, seed) for index in range(count)]
                for split, count in domain.images.items()
            },
            domain.flip,
        )
        for number, domain in enumerate(DOMAINS)
    ]


def is_generated(root: Path) -> bool:
    """Whether all of them lie at `root`: an earlier start may have been stopped half-way."""
    return all((root / domain.name / FILE).is_file() for domain in DOMAINS)


def pack_generated(out: Path, seed: int = SEED) -> list[str]:
    """Draws and packs the generated domains; see `pack_domains`."""
    return pack_domains(generated_domains(seed), out, size=72)
