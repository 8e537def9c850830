"""A retrained network as files for a device, checked against it on validation images.

    python -m mdl.export RUN [--to executorch onnx safetensors program] [--out DIR]
    python -m mdl.predict RUN/export/model.pte --domain D IMAGE

RUN is the run folder of a finished retraining, e.g. runs/mpnas_retrain. Into RUN/export:

    model.pte                              ExecuTorch: one program, a method per domain; with shared
                                           batch norm also one image through all domains
    onnx/<domain>.onnx, onnx/weights.bin   ONNX: a graph per domain over common weights
    onnx/all.domains.onnx                  ONNX: one image through all domains
    torch/model.safetensors, architecture.json   for `mdl.device.torch_files.load_network`
    torch/model.pt2                        torch.export: all domains
    model_int8.pte, onnx_int8/             with --to executorch-int8 onnx-int8: quantised, with
                                           ranges measured on training images of each domain

A network takes colours of 0 to 255 and normalises by itself; classes and sizes of images are in the
files. Needs the optional packages: pip install -c constraints.txt -e '.[device]'
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mdl.command import at_least, run_command
from mdl.console import phase_bar
from mdl.device.agreement import TOLERANCE, Agreement, compare
from mdl.device.executorch_file import write_executorch
from mdl.device.executorch_model import ExecutorchModel
from mdl.device.extra import check_installed
from mdl.device.metadata import Metadata
from mdl.device.model import Model
from mdl.device.onnx_files import write_onnx
from mdl.device.onnx_model import ALL_DOMAINS, OnnxModel, TogetherModel
from mdl.device.plain import FOLDED, FORMS, MIXED, SCALED, PlainPath, stored_bytes
from mdl.device.torch_files import (
    NetworkModel,
    ProgramModel,
    write_program,
    write_safetensors,
)
from mdl.errors import UserError, nearest
from mdl.results.table import Table, percent
from mdl.run_folder import read_object
from mdl.space.architecture import Architecture
from mdl.trained import Trained
from mdl.trainer import quiet
from mdl.whole_files import write_text

TARGETS = ("executorch", "onnx", "safetensors", "program")
INT8_TARGETS = ("executorch-int8", "onnx-int8")
_RECORD = "export.json"
_IMAGES = 200  # of each domain, that an export is checked on
_ONNX = "onnx", "onnxscript", "onnxruntime"
_NEEDED = {
    "executorch": ("executorch",),
    "executorch-int8": ("executorch", "torchao"),
    "onnx": _ONNX,
    "onnx-int8": _ONNX,
    "safetensors": ("safetensors",),
    "program": (),
}


@dataclass(frozen=True)
class Exported:
    """What was written for one runtime."""

    target: str
    files: list[Path]
    form: str  # of batch norm
    # bytes of tensors: equal ones once, and in as many files as there are domains; INT8: unknown
    tensors: tuple[int, int] | None
    agreements: Mapping[str, Agreement]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    check_installed(package for target in options.to for package in _NEEDED[target])
    quiet()
    trained = Trained.open(options.run, options.checkpoint)
    domains = _chosen(options.domains, list(trained.metadata.domains))
    out = options.out or trained.folder.path / "export"
    _known_record(out / _RECORD)  # a damaged one is told now
    exported = export(trained, domains, options.to, out, options.batch_norm, options.images)
    size_table(exported).print()
    agreement_table(exported).print()
    _write_record(out / _RECORD, trained, exported)
    print(f"Files: {out}")
    first = next(iter(domains))
    runtime, file = options.to[0].partition("-")[0], exported[0].files[0]
    model = {"executorch": file, "onnx": file.parent}.get(runtime)
    if model is not None:
        print(f"Next: python -m mdl.predict {model} --domain {first} IMAGE")


def export(
    trained: Trained,
    domains: Sequence[str],
    targets: Sequence[str],
    out: Path,
    form: str | None = None,
    images: int = _IMAGES,
) -> list[Exported]:
    """Writes and checks the files of each target.

    form: of batch norm, see `mdl.device.plain`; None: the best for each runtime.
    Raises UserError where an export does not answer as the trained network does.
    """
    metadata = trained.metadata.of(*domains)
    known: dict[tuple[str, bool], dict[str, PlainPath]] = {}
    exported = []
    with phase_bar("exporting", 2 * len(targets)) as advance:
        for target in targets:
            # ONNX Runtime folds what can be folded when it loads a file: the smallest is best
            own = form or (MIXED if target == "executorch" else SCALED)
            int8 = target in INT8_TARGETS
            if int8:
                own = FOLDED  # codes of weights stay shared
            if (own, int8) not in known:
                known[own, int8] = trained.plain_paths(own, domains, int8)
            paths = known[own, int8]
            files, open_written = _write(target, trained, paths, metadata, out)
            graph = [file for file in files if file.name == ALL_DOMAINS]
            files = [file for file in files if file not in graph]
            advance(1)
            model = open_written()
            agreements = check(trained, model, domains, images)
            tensors = None if int8 else stored_bytes(paths)
            exported.append(Exported(target, files, own, tensors, agreements))
            together: dict[str, tuple[list[Path], Model]] = {}
            if graph:
                together[f"{target}, one graph"] = graph, TogetherModel(graph[0].parent)
            elif isinstance(model, ExecutorchModel) and model.together is not None:
                together[f"{target}, one method"] = files, model.together
            for name, (of_all, every) in together.items():
                agreements = check(trained, every, every.domains, images)
                exported.append(Exported(name, of_all, own, None, agreements))
            advance(1)
    _check_agreement(exported, out / _RECORD)
    return exported


def _check_agreement(exported: Sequence[Exported], record: Path) -> None:
    """Raises UserError, and removes files, where they answer otherwise than the network."""
    wrong = {}
    for of in exported:
        differences = {d: agreement.greatest_difference for d, agreement in of.agreements.items()}
        # not '>': a difference that is no number is none that is small
        far = {d: found for d, found in differences.items() if not found <= TOLERANCE}
        if of.target in INT8_TARGETS or not far:
            continue
        for file in of.files:
            file.unlink(missing_ok=True)  # another entry's too
        domain = max(far, key=lambda d: (math.isnan(far[d]), far[d]))
        wrong[of.target] = f"{of.target} of '{domain}' by {far[domain]:.2g}"
    if wrong:
        removed = {file for of in exported if of.target in wrong for file in of.files}
        gone = {of.target for of in exported if removed.intersection(of.files)}
        if known := _known_record(record):
            known["exports"] = {t: of for t, of in known["exports"].items() if t not in gone}
            write_text(record, json.dumps(known, indent=1) + "\n")
        raise UserError(
            "Exports answered otherwise than the trained network and were removed: logits "
            f"differed in {', '.join(wrong.values())}; expected at most {TOLERANCE:g}. "
            "Try another --batch-norm."
        )


def _write(
    target: str,
    trained: Trained,
    paths: Mapping[str, PlainPath],
    metadata: Metadata,
    out: Path,
) -> tuple[list[Path], Callable[[], Model]]:
    """Writes the files of a target; gives them, and what opens them."""
    runtime, _, int8 = target.partition("-")
    ending = f"_{int8}" if int8 else ""
    calibration = trained.calibration(list(paths)) if int8 else None
    if runtime == "executorch":
        file = out / f"model{ending}.pte"
        write_executorch(file, paths, metadata, calibration)
        return [file], lambda: ExecutorchModel(file)
    if runtime == "onnx":
        onnx = out / f"onnx{ending}"
        return write_onnx(onnx, paths, metadata, calibration), lambda: OnnxModel(onnx)
    folder = out / "torch"
    if target == "program":
        write_program(folder / "model.pt2", paths, metadata)
        return [folder / "model.pt2"], lambda: ProgramModel(folder / "model.pt2")
    domains, of = list(paths), trained.architecture
    architecture = Architecture(of.space, trained.paths(domains), of.source)
    files = write_safetensors(folder, trained.network(domains), architecture, metadata)
    return files, lambda: NetworkModel(folder)


def check(
    trained: Trained, model: Model, domains: Sequence[str], images: int | None
) -> dict[str, Agreement]:
    """How a model's answers to validation images agree with the trained network's, by domain."""
    agreements = {}
    for domain in domains:
        contents, labels = trained.images(domain, "val", images)
        expected = trained.logits(domain, contents).numpy()
        colours = trained.prepared(domain, contents)
        agreements[domain] = compare(expected, model.logits(domain, colours), labels.numpy())
    return agreements


def size_table(exported: Sequence[Exported]) -> Table:
    rows = []
    told: set[Path] = set()
    for of in exported:
        if told.issuperset(of.files):
            continue  # a method of a file
        told.update(of.files)
        row = [of.target, of.form, f"{of.bytes / 1e6:.2f}"]
        if of.tensors is None:
            row += ["-", "-", "-"]
        else:
            once, apart = of.tensors
            row += [f"{once / 1e6:.2f}", f"{apart / 1e6:.2f}", f"{1 - once / apart:.0%}"]
        rows.append(row)
    columns = ["files", "batch norm", "MB", "tensors, MB", "in files apart, MB", "saved by sharing"]
    return Table("what was written", columns, rows)


def agreement_table(exported: Sequence[Exported]) -> Table:
    rows = []
    for domain in exported[0].agreements:
        first = exported[0].agreements[domain]
        row = [domain, str(first.images), percent(first.trained_accuracy)]
        for of in exported:
            if (agreement := of.agreements.get(domain)) is None:
                row.append("-")  # its images have another size than those of the one graph
                continue
            answers = percent(agreement.exported_accuracy)
            row.append(f"{agreement.greatest_difference:.0e}  {answers}")
        rows.append(row)
    columns = ["domain", "images", "trained", *(of.target for of in exported)]
    title = "validation images: greatest difference of logits, and top-1 in %"
    return Table(title, columns, rows)


def _write_record(file: Path, trained: Trained, exported: Sequence[Exported]) -> None:
    """Beside what the file says of other exports of the same checkpoint, which stays."""
    head = {"source": dict(trained.metadata.source), "torch": torch.__version__}
    known = _known_record(file)
    earlier = known["exports"] if head.items() <= known.items() else {}
    content = head | {
        "exports": earlier
        | {
            of.target: {
                "files": {file.name: file.stat().st_size for file in of.files},
                "batch_norm": of.form,
                "tensors": of.tensors,
                "agreement": {d: asdict(agreement) for d, agreement in of.agreements.items()},
            }
            for of in exported
        },
    }
    write_text(file, json.dumps(content, indent=1) + "\n")


def _known_record(file: Path) -> dict[str, Any]:
    """What the file says; empty where it is not there. Raises UserError where it is damaged."""
    if not file.is_file():
        return {}
    record = read_object(file, "a record of exports", "exports that are made from now on make it")
    return record if isinstance(record.get("exports"), dict) else {}


def _chosen(wanted: Sequence[str] | None, known: list[str]) -> list[str]:
    for domain in wanted or ():
        if domain not in known:
            raise UserError(
                f"--domains names '{domain}', which the run lacks; {nearest(domain, known)}"
            )
    return [domain for domain in known if not wanted or domain in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--to", nargs="+", choices=TARGETS + INT8_TARGETS, default=TARGETS)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export")
    parser.add_argument("--domains", nargs="+", metavar="DOMAIN", help="default: all")
    parser.add_argument("--checkpoint", choices=("best", "last"))
    parser.add_argument("--batch-norm", choices=FORMS, help="default: the best for each runtime")
    parser.add_argument(
        "--images", type=at_least(1), default=_IMAGES, help="of each domain, to check on"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
