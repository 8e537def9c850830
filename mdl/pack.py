"""Images into shards.

    python -m mdl.pack folders DIR OUT       image folders <domain>/<split>/<class>/*
    python -m mdl.pack miniature OUT         the ten generated domains

Each domain becomes OUT/<domain>/: WebDataset shards, an index per split, and a domain.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mdl.console import run_command
from mdl.data.domains import SPLITS, Domain, read_domains
from mdl.data.embedded import SEED, pack_generated
from mdl.data.folders import read_folders
from mdl.data.packing import DomainSource, pack_domains
from mdl.errors import UserError
from mdl.results.table import Table


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.source == "folders":
        sources = _folder_sources(options.dir, options.no_flip)
        left = pack_domains(
            sources, options.out, size=options.size, skip_broken=options.skip_broken
        )
    else:
        left = pack_generated(options.out, options.seed)
    for name in left:
        print(f"{name}: already packed in {options.out}, left as it is")
    domain_table(options.out).print()
    print(
        "Next: python -m mdl.fit recipes/mpnas_search.yaml "
        f"data.root={options.out} name={options.out.name}"
    )


def _folder_sources(root: Path, no_flip: Sequence[str]) -> list[DomainSource]:
    domains = read_folders(root)
    names = [domain.name for domain in domains]
    for name in no_flip:
        if name not in names:
            raise UserError(f"--no-flip names '{name}'; {root} holds {', '.join(names)}.")
    for domain in domains:
        for extension, count in domain.ignored.items():
            print(f"{domain.name}: {count} files '{extension}' are no images, left out")
    return [DomainSource(d.name, d.classes, d.images, d.name not in no_flip) for d in domains]


def domain_table(root: Path) -> Table:
    """A row per packed domain."""
    rows = []
    for domain in read_domains(root).values():
        counts = [str(domain.splits[s].images) if s in domain.splits else "-" for s in SPLITS]
        classes, flip = str(len(domain.classes)), "yes" if domain.flip else "no"
        rows.append([domain.name, classes, *counts, _sides(domain), flip, domain.fit])
    columns = ["domain", "classes", *SPLITS, "sides, px", "flip", "fit"]
    return Table(f"packed domains in {root}", columns, rows)


def _sides(domain: Domain) -> str:
    train = domain.splits["train"]
    (w_min, w_max), (h_min, h_max) = train.width, train.height
    return f"{min(w_min, h_min)}-{max(w_max, h_max)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(dest="source", required=True)
    folders = sources.add_parser("folders", help="image folders <domain>/<split>/<class>/*")
    folders.add_argument("dir", type=Path)
    folders.add_argument("out", type=Path)
    folders.add_argument(
        "--size", type=int, default=72, help="longest shorter side, px (default 72)"
    )
    folders.add_argument(
        "--no-flip",
        type=_names,
        default=[],
        metavar="DOMAIN,...",
        help="domains whose labels a mirror changes: digits, letters, signs",
    )
    folders.add_argument(
        "--skip-broken", action="store_true", help="leave out images that cannot be decoded"
    )
    miniature = sources.add_parser("miniature", help="the ten generated domains")
    miniature.add_argument("out", type=Path)
    miniature.add_argument("--seed", type=int, default=SEED)
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(run_command(main))
