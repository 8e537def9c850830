"""Images into shards.

    python -m mdl.pack folders DIR OUT        image folders <domain>/<split>/<class>/*, or
                                              <domain>/<class>/* to be split by hash
    python -m mdl.pack decathlon SOURCE OUT   the Visual Domain Decathlon's devkit
    python -m mdl.pack miniature OUT          the ten generated domains
    python -m mdl.pack verify OUT             re-reads everything against the checksums
    python -m mdl.pack info OUT               a table, and a contact sheet per domain

Each domain becomes OUT/<domain>/: WebDataset shards, an index per split, and a domain.json.
Packing can be stopped; the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mdl.command import at_least, run_command
from mdl.console import phase_bar
from mdl.data.cache import is_address
from mdl.data.devkit import read_devkit
from mdl.data.domains import SPLITS, Domain, read_domains
from mdl.data.embedded import SEED, pack_generated
from mdl.data.folders import HELD_OUT, read_folders
from mdl.data.packing import pack_domains
from mdl.data.source import DomainSource
from mdl.data.verify import verify_domain
from mdl.errors import UserError
from mdl.results.contact_sheet import write_contact_sheets
from mdl.results.table import Table


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    commands = {
        "folders": _pack_folders,
        "decathlon": _pack_decathlon,
        "miniature": _pack_miniature,
        "verify": _verify,
        "info": _info,
    }
    if options.command in ("verify", "info") and is_address(str(options.out)):
        raise UserError(f"{options.command} reads a folder; {options.out} is an address.")
    commands[options.command](options)


def _pack_folders(options: argparse.Namespace) -> None:
    if options.dir.resolve() in (options.out.resolve(), *options.out.resolve().parents):
        raise UserError(
            f"OUT = {options.out} lies in DIR = {options.dir}; expected a folder elsewhere, which "
            "is not taken for a domain."
        )
    sources = _folder_sources(options.dir, options.no_flip)
    _pack(sources, options)
    _say_what_is_packed(options.out, "recipes/mpnas_search.yaml")


def _folder_sources(root: Path, no_flip: Sequence[str]) -> list[DomainSource]:
    domains = read_folders(root)
    names = [domain.name for domain in domains]
    for name in no_flip:
        if name not in names:
            raise UserError(f"--no-flip names '{name}'; {root} holds {', '.join(names)}.")
    for domain in domains:
        for what, count in domain.ignored.items():
            print(f"{domain.name}: left out: {count} {what}")
        if domain.split_by_hash:
            parts = ", ".join(f"{part:.0%} {split}" for split, part in HELD_OUT.items())
            print(f"{domain.name}: no split folders, split by hash: {parts}, the rest train")
    return [DomainSource(d.name, d.classes, d.images, d.name not in no_flip) for d in domains]


def _pack_decathlon(options: argparse.Namespace) -> None:
    devkit = read_devkit(options.source)
    listed = "\n".join(f"  {text}" for text in devkit.differences)
    if devkit.differences and not options.partial:
        raise UserError(
            f"{options.source} differs from what is published:\n{listed}\n"
            "Complete it, or pack what is there with --partial."
        )
    if devkit.differences:
        print(f"Packed as it is, differing from what is published:\n{listed}")
    _pack(devkit.sources, options)
    _say_what_is_packed(options.out, "recipes/mpnas_search.yaml recipes/decathlon.yaml")
    if (fewer := _left_out(options.out)) and not options.partial:
        raise UserError(
            f"{options.out} is packed, but not all that is published: {fewer}. Mend those images, "
            "remove the domain's folder and pack it again; or leave it so with --partial."
        )


def _left_out(out: Path) -> str:
    """Domains of which images were left out, in words."""
    splits = {name: domain.splits.values() for name, domain in read_domains(out).items()}
    counts = {name: sum(split.broken for split in of) for name, of in splits.items()}
    return ", ".join(f"{name}: {count} left out" for name, count in counts.items() if count)


def _pack(sources: Sequence[DomainSource], options: argparse.Namespace) -> None:
    left = pack_domains(sources, options.out, size=options.size, skip_broken=options.skip_broken)
    for name in left:
        print(f"{name}: already packed in {options.out}, left as it is")


def _pack_miniature(options: argparse.Namespace) -> None:
    for name in pack_generated(options.out, options.seed):
        print(f"{name}: already packed in {options.out}, left as it is")
    _say_what_is_packed(options.out, "recipes/mpnas_search.yaml")


def _say_what_is_packed(out: Path, recipes: str) -> None:
    domain_table(out).print()
    for name, domain in read_domains(out).items():
        if "val" not in domain.splits:
            print(
                f"{name} has no val split: a search does without, a retraining does not. To add "
                f"one, remove {out / name} and pack again"
            )
        if "test" not in domain.splits:
            print(f"{name} has no test split: a retraining gives no test score of it")
        if len(domain.classes) == 1:
            print(f"{name} has one class: every answer is right, which raises means over domains")
    words = shlex.join([f"data.root={out}", f"name={out.name}"])
    print(f"Next: python -m mdl.fit {recipes} {words}")


def _verify(options: argparse.Namespace) -> None:
    domains = read_domains(options.out)
    total = sum(split.images for domain in domains.values() for split in domain.splits.values())
    problems = {}
    with phase_bar("verifying", total) as advance:
        for name, domain in domains.items():
            problems[name] = verify_domain(domain, os.cpu_count() or 1, advance)
    rows = [[name, str(len(of)) if of else "as packed"] for name, of in problems.items()]
    Table(f"verified: {total:,} images in {options.out}", ["domain", "faults"], rows).print()
    faults = [f"{options.out / name}: {text}" for name, of in problems.items() for text in of]
    if faults:
        listed = "\n".join(f"  {text}" for text in faults[:50])
        more = f"\n  ... and {len(faults) - 50} more" if len(faults) > 50 else ""
        raise UserError(
            f"{len(faults)} faults found:\n{listed}{more}\n"
            "Restore the files, or remove the domain's folder and pack it again."
        )


def _info(options: argparse.Namespace) -> None:
    domain_table(options.out).print()
    sheets = write_contact_sheets(read_domains(options.out), options.out / "contact_sheets")
    print(f"Contact sheets: {sheets[0].parent}/<domain>.png")


def domain_table(root: Path) -> Table:
    """A row per packed domain."""
    rows = []
    for domain in read_domains(root).values():
        counts = [_count(domain, split) for split in SPLITS]
        classes, flip = f"{len(domain.classes):,}", "yes" if domain.flip else "no"
        size = sum(shard.bytes for of in domain.splits.values() for shard in of.shards)
        sides = _sides(domain)
        rows.append([domain.name, classes, *counts, f"{size / 1e6:.1f}", sides, flip, domain.fit])
    columns = ["domain", "classes", *SPLITS, "MB", "sides, px", "flip", "fit"]
    return Table(f"packed domains in {root}", columns, rows)


def _count(domain: Domain, split: str) -> str:
    """Images of a split; a star where not all of them have labels."""
    if split not in domain.splits:
        return "-"
    of = domain.splits[split]
    return f"{of.images:,}" + ("" if of.labelled == of.images else "*")


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
    commands = parser.add_subparsers(dest="command", required=True)
    folders = commands.add_parser("folders", help="image folders, with splits or without")
    folders.add_argument("dir", type=Path)
    folders.add_argument(
        "--no-flip",
        type=_names,
        default=[],
        metavar="DOMAIN,...",
        help="domains whose labels a mirror changes: digits, letters, signs",
    )
    decathlon = commands.add_parser("decathlon", help="the Visual Domain Decathlon's devkit")
    decathlon.add_argument("source", type=Path)
    decathlon.add_argument(
        "--partial", action="store_true", help="pack what is there, and say what is not"
    )
    for one in (folders, decathlon):
        one.add_argument("out", type=Path)
        one.add_argument(
            "--size", type=at_least(1), default=72, help="longest shorter side, px (default 72)"
        )
        one.add_argument(
            "--skip-broken", action="store_true", help="leave out images that cannot be decoded"
        )
    miniature = commands.add_parser("miniature", help="the ten generated domains")
    miniature.add_argument("out", type=Path)
    miniature.add_argument("--seed", type=int, default=SEED)
    verify = commands.add_parser("verify", help="re-read everything against the checksums")
    verify.add_argument("out", type=Path, help="a folder of packed domains")
    info = commands.add_parser("info", help="a table, and a contact sheet per domain")
    info.add_argument("out", type=Path)
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(run_command(main))
