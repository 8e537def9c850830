"""From images, wherever they come from, to packed domains: shards, indexes, domain.json.

Packing can be stopped at any moment and started again: finished shards stay, in a hidden folder
beside, until the domain is whole and takes its place at once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mdl.console import phase_bar
from mdl.data.domains import FILE, Domain, Split, check_name, write_list
from mdl.data.order import permutation, stable_key
from mdl.data.shard_job import Shape, ShardDone, ShardJob
from mdl.data.shards import write_index
from mdl.data.source import DomainSource
from mdl.errors import UserError
from mdl.file_locks import try_lock, wait_for_lock
from mdl.whole_files import disk_faults_told

IMAGES_PER_SHARD = 1000
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_STRETCH_BEYOND = 1.5  # longer over shorter side: beyond it, a middle crop loses the subject


def pack_domains(
    sources: Sequence[DomainSource], out: Path, *, size: int, skip_broken: bool = False
) -> list[str]:
    """Packs what is not yet packed, on all cores, with a progress bar.

    Gives the names of the domains that were packed already and so left as they are. Processes
    that pack into one folder wait for one another.

    Raises UserError as `pack_domain` does, and where the disk is full.
    """
    with disk_faults_told(out / FILE):
        out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        packed = [source.name for source in sources if (out / source.name / FILE).is_file()]
        for source in sources:
            _check_place(source, out, size)
        waiting = [source for source in sources if source.name not in packed]
        total = sum(len(images) for source in waiting for images in source.images.values())
        with phase_bar("packing", total) as advance:
            for source in waiting:
                pack_domain(
                    source,
                    out,
                    size=size,
                    workers=os.cpu_count() or 1,
                    skip_broken=skip_broken,
                    advance=advance,
                )
        write_list(out)
    return packed


def _check_place(source: DomainSource, out: Path, size: int) -> None:
    """Raises UserError where something else lies where the domain is to be."""
    folder = out / source.name
    if not folder.exists():
        return
    if not (folder / FILE).is_file():
        raise UserError(
            f"{folder} is there and is no packed domain: it holds no {FILE}. Pack into another "
            "folder, or remove it."
        )
    domain = Domain.read(folder)
    there: dict[str, Any] = {s: of.images + of.broken for s, of in domain.splits.items()}
    there |= {"classes": list(domain.classes), "--size": domain.size, "flip": domain.flip}
    found: dict[str, Any] = {s: len(of) for s, of in source.images.items() if len(of)}
    found |= {"classes": list(source.classes), "--size": size, "flip": source.flip}
    for key in [*found, *there]:
        if there.get(key) != found.get(key):
            raise UserError(
                f"'{source.name}' is packed in {out} already, and of something else: {key} was "
                f"{there.get(key)}, now is {found.get(key)}. Remove {folder} to pack it again."
            )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    with disk_faults_told(out / FILE):
        lock = (out / ".lock").open("w")
    with lock:
        # lockf: unlike flock's, its locks are not handed on to the processes that pack
        if not try_lock(lock, fcntl.lockf):
            print(f"Waiting for another process that packs into {out}", file=sys.stderr)
            wait_for_lock(lock, fcntl.lockf)
        yield


def pack_domain(
    source: DomainSource,
    out: Path,
    *,
    size: int,
    workers: int = 1,
    skip_broken: bool = False,
    advance: Callable[[int], None] = lambda packed: None,
) -> Domain:
    """Packs one domain into `out/<its name>` and gives what its domain.json says.

    Images are packed in a fixed shuffled order, whole or not at all.
    size: longest shorter side, px; larger images are scaled down, smaller ones kept to the byte.
    skip_broken: whether images that cannot be decoded are left out instead of refused.
    advance: told how many images were packed since it was last told.

    Raises UserError for a bad name, an empty training split, broken images, or a full disk; what
    was packed is kept for the next start.
    """
    name = source.name
    check_name(name)
    if not source.images.get("train"):
        raise UserError(f"Domain '{name}' has no training images; expected {name}/train/<class>/.")
    final, folder = out / name, out / f".{name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = _pack_shards(source, folder, size, workers, advance)
        broken = [text for parts in done.values() for part in parts for text in part.broken]
        if broken and not skip_broken:
            raise UserError(
                f"Domain '{name}' holds {len(broken)} images that cannot be decoded: "
                f"{'; '.join(broken[:5])}{'; ...' if len(broken) > 5 else ''}. "
                "Remove or replace them, or leave them out with --skip-broken."
            )
        if not any(part.shard.images for part in done["train"]):
            raise UserError(
                f"No training image of domain '{name}' can be decoded; expected at least one."
            )
        domain = _describe(source, done, folder, size)
        domain.write()
        _say_what_was_left_out(name, broken, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"The disk is full: domain '{name}' could not be packed into {out} ({error}). "
            f"What is packed of it lies in {folder}: free some space, and the same command goes on."
        ) from error
    except BrokenProcessPool as error:
        raise UserError(
            f"A process that packs '{name}' was killed, perhaps for want of memory. What is packed "
            f"lies in {folder}: the same command goes on."
        ) from error
    _keep_only(folder, {FILE, *domain.files})
    os.replace(folder, final)
    return Domain.read(final)


def _say_what_was_left_out(name: str, broken: Sequence[str], out: Path) -> None:
    if broken:
        file = out / f"{name}.left_out.txt"
        lines = "".join(f"{text}\n" for text in broken)
        file.write_text(lines, encoding="utf-8", errors="surrogateescape")
        print(f"{name}: {len(broken)} images cannot be decoded, left out; listed in {file}")


def _keep_only(folder: Path, names: set[str]) -> None:
    """Leaves nothing of the notes, nor of an earlier start with other images."""
    for file in folder.iterdir():
        if file.name not in names:
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def _pack_shards(
    source: DomainSource,
    folder: Path,
    size: int,
    workers: int,
    advance: Callable[[int], None],
) -> dict[str, list[ShardDone]]:
    """Split -> its shards, in their order."""
    done: dict[tuple[str, int], ShardDone] = {}
    waiting = []
    for job in _jobs(source, folder, size):
        before = job.done()
        if before is None:
            waiting.append(job)
        else:
            done[job.split, job.number] = before
            advance(len(job.images))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _finish_the_shard) as executor:
        running = {executor.submit(job.run): job for job in waiting}
        try:
            for future in as_completed(running):
                job = running[future]
                done[job.split, job.number] = future.result()
                advance(len(job.images))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    splits: dict[str, list[ShardDone]] = {split: [] for split in source.images}
    for split, number in sorted(done):
        splits[split].append(done[split, number])
    return splits


def _finish_the_shard() -> None:
    """Ctrl-C reaches all processes; those that pack finish what they are at.

    Where the process that started them is killed, they end with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _jobs(source: DomainSource, folder: Path, size: int) -> Iterator[ShardJob]:
    for split, images in source.images.items():
        order = permutation(stable_key("packing", source.name, split), len(images))
        for number, first in enumerate(range(0, len(order), IMAGES_PER_SHARD)):
            chosen = [images[i] for i in order[first : first + IMAGES_PER_SHARD]]
            yield ShardJob(chosen, split, number, first, folder, size)


def _describe(
    source: DomainSource, done: dict[str, list[ShardDone]], folder: Path, size: int
) -> Domain:
    shape = Shape()
    for part in done["train"]:
        shape.add(part.shape)
    mean = np.array(shape.total) / max(shape.pixels, 1)
    std = np.sqrt(np.maximum(np.array(shape.squares) / max(shape.pixels, 1) - mean**2, 0))
    sides = np.array([shape.widths, shape.heights])
    elongation = float(np.median(sides.max(0) / sides.min(0)))
    return Domain(
        name=source.name,
        classes=tuple(source.classes),
        mean=_rounded(mean),
        # a domain of one colour has no deviation to divide by
        std=_rounded(np.maximum(std, 1e-3)),
        flip=source.flip,
        fit="stretch" if elongation > _STRETCH_BEYOND else "crop",
        splits={
            split: _describe_split(split, parts, len(source.classes), folder)
            for split, parts in done.items()
            if parts
        },
        folder=folder,
        size=size,
    )


def _describe_split(split: str, parts: list[ShardDone], num_classes: int, folder: Path) -> Split:
    rows = np.concatenate([part.rows for part in parts])
    widths = [width for part in parts for width in part.shape.widths]
    heights = [height for part in parts for height in part.shape.heights]
    index = f"{split}.index.npy"
    counts = np.bincount(rows["label"][rows["label"] >= 0], minlength=num_classes)
    return Split(
        images=len(rows),
        images_per_class=tuple(counts.tolist()),
        width=(min(widths, default=0), max(widths, default=0)),
        height=(min(heights, default=0), max(heights, default=0)),
        index=index,
        index_sha256=write_index(folder / index, rows),
        shards=tuple(part.shard for part in parts),
        broken=sum(len(part.broken) for part in parts),
    )


def _rounded(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue
