"""Answers of an exported model, by its own runtime.

    python -m mdl.predict RUN/export/model.pte --domain D IMAGE ...
    python -m mdl.predict RUN/export/onnx --all-domains FOLDER
    ls *.jpg | python -m mdl.predict RUN/export/onnx --domain D -

A line of JSON per image and domain: the most likely classes and their probabilities. A folder
stands for the images below it, - for names on standard input. ONNX files need onnxruntime, numpy
and Pillow alone; .pte files ExecuTorch's Python bindings. Nothing of training is imported.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdl.command import at_least, run_command
from mdl.data.images import EXTENSIONS, BrokenImage
from mdl.device.model import Model, open_model
from mdl.device.onnx_model import Logits
from mdl.device.preparation import prepare
from mdl.errors import UserError


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    # a file's name may be no text: it is read as it is, and written as JSON escapes it
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    model = open_model(options.model)
    domains = model.domains if options.all_domains else options.domain
    for domain in domains:
        model.metadata(domain)  # a misspelt one is told before anything is answered
    broken = counted = 0
    for file in image_files(options.images):
        counted += 1
        try:
            answers = [answer(model, domain, file, options.top) for domain in domains]
        except UserError as error:
            broken += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        try:
            for of in answers:
                print(json.dumps(of, ensure_ascii=False), flush=True)
        except BrokenPipeError:  # head, say, has read all that it wants
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
    if broken:
        raise UserError(
            f"{broken} of {counted} images had no answer, for the reasons above; the others have."
        )


def answer(model: Model, domain: str, file: Path, top: int) -> dict[str, Any]:
    """The `top` most likely classes of an image, by one domain.

    Raises UserError where the file cannot be read or is no image that can be decoded.
    """
    of = model.metadata(domain).domain(domain)
    try:
        colours = prepare(file.read_bytes(), of)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; expected an image.") from error
    except BrokenImage as error:
        raise UserError(
            f"{file} is no image that can be read: {error}. Expected "
            f"{', '.join(sorted(of[1:] for of in EXTENSIONS))} of 8 or 16 bits."
        ) from error
    probabilities = softmax(model.logits(domain, colours))[0]
    best = np.argsort(-probabilities, kind="stable")[:top].tolist()
    classes = [
        {"class": of.classes[i], "probability": round(float(probabilities[i]), 6)} for i in best
    ]
    return {"image": str(file), "domain": domain, "top": classes}


def softmax(logits: Logits) -> Logits:
    """Logits [n, classes] -> probabilities."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    shares: Logits = odds / odds.sum(1, keepdims=True)
    return shares


def image_files(words: Sequence[str]) -> Iterator[Path]:
    """The files that words stand for: a file, a folder's images, - for names on standard input.

    Raises UserError where a folder holds no image.
    """
    for word in words:
        if word == "-":
            yield from _named_on_standard_input()
        elif Path(word).is_dir():
            found = sorted(p for p in Path(word).rglob("*") if p.suffix.lower() in EXTENSIONS)
            if not found:
                raise UserError(f"{word} holds no image; expected files of {sorted(EXTENSIONS)}.")
            yield from found
        else:
            yield Path(word)


def _named_on_standard_input() -> Iterator[Path]:
    try:
        for line in sys.stdin:
            if "\0" in line:
                raise ValueError("it holds a zero byte")
            if line.strip():
                yield Path(line.rstrip("\n"))
    except ValueError as error:  # of bytes that are no text, too
        raise UserError(
            f"Standard input is no list of files: {error}. Expected a name on each line; an image "
            "itself is given by its name."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--domain", action="append", metavar="D", help="may be given several times")
    which.add_argument("--all-domains", action="store_true")
    parser.add_argument("--top", type=at_least(1), default=3, metavar="K", help="classes per image")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
