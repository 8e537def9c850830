"""A retrained network as files for a device, checked against it on validation images.

    python -m mdl.export RUN [--to executorch onnx safetensors program] [--out DIR]
    python -m mdl.predict RUN/export/model.pte --domain D IMAGE

RUN is the run folder of a finished retraining, e.g. runs/mpnas_retrain. Into RUN/export:

    model.pte                              ExecuTorch: one program, a method per domain
    onnx/<domain>.onnx, onnx/weights.bin   ONNX: a graph per domain over common weights
    onnx/all.domains.onnx                  ONNX: one image through all domains
    torch/model.safetensors, architecture.json   for `mdl.device.torch_files.load_network`
    torch/model.pt2                        torch.export: all domains

A network takes colours of 0 to 255 and normalises by itself; classes and sizes of images are in the
files. Needs the optional packages: pip install -c constraints.txt -e '.[device]'
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mdl.command import run_command
from mdl.console import phase_bar
from mdl.device.agreement import TOLERANCE, Agreement, compare
from mdl.device.executorch_file import write_executorch
from mdl.device.executorch_model import ExecutorchModel
from mdl.device.metadata import Metadata
from mdl.device.model import Model
from mdl.device.onnx_files import write_onnx
from mdl.device.onnx_model import OnnxModel
from mdl.device.plain import FORMS, MIXED, SCALED, PlainPath, stored_bytes
from mdl.device.preparation import prepare
from mdl.device.torch_files import (
    NetworkModel,
    ProgramModel,
    write_program,
    write_safetensors,
)
from mdl.errors import UserError, nearest
from mdl.results.table import Table, percent
from mdl.run_folder import write_beside
from mdl.space.architecture import Architecture
from mdl.trained import Trained
from mdl.trainer import quiet

TARGETS = ("executorch", "onnx", "safetensors", "program")
_IMAGES = 200  # of each domain, that an export is checked on


@dataclass(frozen=True)
class Exported:
    """What was written for one runtime."""

    target: str
    files: list[Path]
    form: str  # of batch norm
    tensors: int  # bytes, equal ones once
    tensors_apart: int  # bytes, of as many files as there are domains
    agreements: Mapping[str, Agreement]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    quiet()
    trained = Trained.open(options.run, options.checkpoint)
    domains = _chosen(options.domains, list(trained.metadata.domains))
    out = options.out or trained.folder.path / "export"
    exported = export(trained, domains, options.to, out, options.batch_norm, options.images)
    size_table(exported).print()
    agreement_table(exported).print()
    write_beside(out / "export.json", _record(trained, exported))
    print(f"Files: {out}")
    first = next(iter(domains))
    model = {"executorch": "model.pte", "onnx": "onnx"}.get(options.to[0])
    if model is not None:
        print(f"Next: python -m mdl.predict {out / model} --domain {first} IMAGE")


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
    known: dict[str, dict[str, PlainPath]] = {}
    exported = []
    with phase_bar("exporting", 2 * len(targets)) as advance:
        for target in targets:
            # ONNX Runtime folds what can be folded when it loads a file: the smallest is best
            own = form or (MIXED if target == "executorch" else SCALED)
            paths = known.setdefault(own, trained.plain_paths(own, domains))
            files, open_written = _write(target, trained, paths, metadata, out)
            advance(1)
            agreements = check(trained, open_written(), domains, images)
            exported.append(Exported(target, files, own, *stored_bytes(paths), agreements))
            advance(1)
    for of in exported:
        _check_agreement(of)
    return exported


def _check_agreement(exported: Exported) -> None:
    """Raises UserError, and removes the files, where they answer otherwise than the network."""
    for domain, agreement in exported.agreements.items():
        if agreement.greatest_difference > TOLERANCE:
            for file in exported.files:
                file.unlink()
            raise UserError(
                f"The {exported.target} export of '{domain}' answered otherwise than the trained "
                f"network and was removed: logits differed by {agreement.greatest_difference:.2g}, "
                f"expected at most {TOLERANCE:g}. Try another --batch-norm."
            )


def _write(
    target: str,
    trained: Trained,
    paths: Mapping[str, PlainPath],
    metadata: Metadata,
    out: Path,
) -> tuple[list[Path], Callable[[], Model]]:
    """Writes the files of a target; gives them, and what opens them."""
    if target == "executorch":
        file = out / "model.pte"
        write_executorch(file, paths, metadata)
        return [file], lambda: ExecutorchModel(file)
    if target == "onnx":
        return write_onnx(out / "onnx", paths, metadata), lambda: OnnxModel(out / "onnx")
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
        of = model.metadata(domain).domain(domain)
        colours = np.concatenate([prepare(content, of) for content in contents])
        agreements[domain] = compare(expected, model.logits(domain, colours), labels.numpy())
    return agreements


def size_table(exported: Sequence[Exported]) -> Table:
    rows = [
        [
            of.target,
            of.form,
            f"{of.bytes / 1e6:.2f}",
            f"{of.tensors / 1e6:.2f}",
            f"{of.tensors_apart / 1e6:.2f}",
            f"{1 - of.tensors / of.tensors_apart:.0%}",
        ]
        for of in exported
    ]
    columns = ["files", "batch norm", "MB", "tensors, MB", "in files apart, MB", "saved by sharing"]
    return Table("what was written", columns, rows)


def agreement_table(exported: Sequence[Exported]) -> Table:
    rows = []
    for domain in exported[0].agreements:
        first = exported[0].agreements[domain]
        row = [domain, str(first.images), percent(first.trained_accuracy)]
        for of in exported:
            agreement = of.agreements[domain]
            answers = percent(agreement.exported_accuracy)
            row.append(f"{agreement.greatest_difference:.0e}  {answers}")
        rows.append(row)
    columns = ["domain", "images", "trained", *(of.target for of in exported)]
    title = "validation images: greatest difference of logits, and top-1 in %"
    return Table(title, columns, rows)


def _record(trained: Trained, exported: Sequence[Exported]) -> str:
    content = {
        "source": dict(trained.metadata.source),
        "torch": torch.__version__,
        "exports": {
            of.target: {
                "files": {file.name: file.stat().st_size for file in of.files},
                "batch_norm": of.form,
                "tensors": of.tensors,
                "tensors_apart": of.tensors_apart,
                "agreement": {d: asdict(agreement) for d, agreement in of.agreements.items()},
            }
            for of in exported
        },
    }
    return json.dumps(content, indent=1) + "\n"


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
    parser.add_argument("--to", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export")
    parser.add_argument("--domains", nargs="+", metavar="DOMAIN", help="default: all")
    parser.add_argument("--checkpoint", choices=("best", "last"))
    parser.add_argument("--batch-norm", choices=FORMS, help="default: the best for each runtime")
    parser.add_argument("--images", type=int, default=_IMAGES, help="of each domain, to check on")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
