"""Sizes, latencies and memory of exported networks: batch norm's forms, and a bundle beside them.

    python -m benchmarks.device RUN BUNDLE FOLDER

RUN and BUNDLE are folders of finished retrainings; the bundle has a network of its own per domain
and shares nothing. One thread. What lies in FOLDER already is not written again.
Result: docs/results/device.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from mdl.device.executorch_file import write_executorch
from mdl.device.executorch_model import ExecutorchModel, TogetherMethod, use_threads
from mdl.device.metadata import Metadata
from mdl.device.onnx_files import write_onnx
from mdl.device.onnx_model import ALL_DOMAINS, OnnxModel, open_session
from mdl.device.plain import FOLDED, FORMS, MIXED, SCALED, NormalisedImage, PlainPath, plain_paths
from mdl.device.stopwatch import milliseconds
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.results.table import Table
from mdl.space.architecture import Architecture
from mdl.trained import Trained

REPEATS = 200
SHARED, INT8 = "shared norm", "int8"
_LOADED = (MIXED, SCALED, SHARED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    use_threads(1)
    trained = Trained.open(options.run)
    metadata, domains = trained.metadata, list(trained.metadata.domains)
    folder = options.folder
    kinds = {form: trained.plain_paths(form, domains) for form in FORMS}
    kinds[SHARED] = shared_norm(trained.architecture, metadata)
    for kind, paths in kinds.items():
        if not (folder / f"{kind}.pte").is_file():
            write_executorch(folder / f"{kind}.pte", paths, metadata)
        if not (folder / kind / ALL_DOMAINS).is_file():
            write_onnx(folder / kind, paths, metadata)
    if not (folder / f"{INT8}.pte").is_file() or not (folder / INT8).is_dir():
        paths, images = trained.plain_paths(FOLDED, domains, True), trained.calibration(domains)
        write_executorch(folder / f"{INT8}.pte", paths, metadata, images)
        write_onnx(folder / INT8, paths, metadata, images)
    own = Trained.open(options.bundle).plain_paths(FOLDED, domains)
    for name, paths in {"bundle": own, "alone": kinds[FOLDED]}.items():
        for domain in domains:
            if not (file := folder / name / f"{domain}.pte").is_file():
                write_executorch(file, {domain: paths[domain]}, metadata.of(domain))
    if not (folder / "onnx_bundle" / ALL_DOMAINS).is_file():
        write_onnx(folder / "onnx_bundle", own, metadata)
    sizes(folder, [*kinds, INT8]).print()
    latencies(folder, [*kinds, INT8], domains).print()
    memory(folder, domains).print()


def shared_norm(architecture: Architecture, metadata: Metadata) -> dict[str, PlainPath]:
    """Chains of a network whose batch norm all domains share, of random weights."""
    classes = {domain: len(of.classes) for domain, of in metadata.domains.items()}
    paths = {domain: architecture.paths[domain] for domain in classes}
    users = path_users(architecture.space, paths)
    network = MultiPathNetwork(architecture.space, users, classes, batch_norm="shared").eval()
    sides = {domain: of.image_size for domain, of in metadata.domains.items()}
    first = next(iter(metadata.domains.values()))
    normalised = dict.fromkeys(classes, NormalisedImage(first.mean, first.std))
    return plain_paths(network, paths, normalised, sides, FOLDED)


def sizes(folder: Path, kinds: list[str]) -> Table:
    bundle = sum(file.stat().st_size for file in (folder / "bundle").glob("*.pte"))
    alone = sum(file.stat().st_size for file in (folder / "alone").glob("*.pte"))
    rows = [
        ["ten .pte of the bundle", f"{bundle / 1e6:.2f}", "1.00", "-"],
        ["ten .pte of these paths", f"{alone / 1e6:.2f}", f"{alone / bundle:.3f}", "-"],
    ]
    for kind in kinds:
        joint = (folder / f"{kind}.pte").stat().st_size
        onnx = sum(f.stat().st_size for f in (folder / kind).iterdir() if f.name != ALL_DOMAINS)
        rows.append([kind, f"{joint / 1e6:.2f}", f"{joint / bundle:.3f}", f"{onnx / 1e6:.2f}"])
    return Table("sizes", ["batch norm", ".pte, MB", "/ bundle", "ONNX, MB"], rows)


def latencies(folder: Path, kinds: list[str], domains: list[str]) -> Table:
    """Sums over domains of one image on one path, ms, and one image through all domains."""
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32)).astype(np.float32)
    joint = {kind: ExecutorchModel(folder / f"{kind}.pte") for kind in kinds}
    onnx = {kind: OnnxModel(folder / kind, 1) for kind in kinds}
    onnx["bundle"] = OnnxModel(folder / "onnx_bundle", 1)
    pte, ort = dict.fromkeys([*kinds, "alone", "bundle"], 0.0), dict.fromkeys(onnx, 0.0)
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for domain in domains:
        singles = {n: ExecutorchModel(folder / n / f"{domain}.pte") for n in ("alone", "bundle")}
        models: Mapping[str, ExecutorchModel] = joint | singles
        took = milliseconds({n: call(m, domain, x) for n, m in models.items()}, REPEATS)
        pte = {name: pte[name] + took[name] for name in took}
        for kind in kinds:
            ratios[kind].append(took[kind] / took["alone"])
        took = milliseconds({n: call(m, domain, x) for n, m in onnx.items()}, REPEATS)
        ort = {name: ort[name] + took[name] for name in took}
    graphs = {kind: folder / kind / ALL_DOMAINS for kind in kinds}
    together = {kind: open_session(of, 1) for kind, of in graphs.items() if of.is_file()}
    once = milliseconds(
        {k: lambda s=s: s.run(None, {"image": x}) for k, s in together.items()}, REPEATS
    )
    # against ten methods of the same file in turns with it
    every = {kind: of.together for kind, of in joint.items() if of.together is not None}
    shares = {kind: _one_method(joint[kind], of, x) for kind, of in every.items()}
    rows = [
        [
            kind,
            f"{pte[kind]:.3f}",
            f"{np.median(ratios[kind]):.3f}",
            f"{pte[kind] / pte['bundle']:.3f}",
            f"{pte[kind] * shares[kind] / pte['bundle']:.3f}" if kind in shares else "-",
            f"{ort[kind]:.3f}",
            f"{once[kind]:.3f}" if kind in once else "-",
            f"{once[kind] / ort['bundle']:.3f}" if kind in once else "-",
        ]
        for kind in kinds
    ]
    rows.append(["alone", f"{pte['alone']:.3f}", "1", f"{pte['alone'] / pte['bundle']:.3f}"])
    rows.append(["bundle", f"{pte['bundle']:.3f}", "-", "1", "-", f"{ort['bundle']:.3f}"])
    columns = ["batch norm", ".pte", "/ alone, median", "/ bundle", "one method / bundle"]
    columns += ["ONNX", "ONNX, one graph", "/ ONNX bundle"]
    rows = [row + ["-"] * (len(columns) - len(row)) for row in rows]
    return Table("ms of one image on each of ten paths, summed", columns, rows)


def _one_method(model: ExecutorchModel, together: TogetherMethod, x: np.ndarray) -> float:
    """What one image through all domains takes by the one method, over what ten take."""
    image = (torch.from_numpy(x),)
    ten = [model.method(domain) for domain in together.domains]
    took = milliseconds(
        {
            "ten": lambda: [method.execute(image) for method in ten],
            "one": lambda: together.method.execute(image),
        },
        REPEATS,
    )
    return took["one"] / took["ten"]


def call(model: ExecutorchModel | OnnxModel, domain: str, x: np.ndarray) -> Callable[[], object]:
    """What the runtime itself does, without what `logits` adds."""
    if isinstance(model, OnnxModel):
        session = model.session(domain)
        return lambda: session.run(None, {"image": x})
    method, image = model.method(domain), (torch.from_numpy(x),)
    return lambda: method.execute(image)


def memory(folder: Path, domains: list[str]) -> Table:
    """What a process takes more, once every domain has run, MB (`benchmarks.loaded`)."""
    cases = {f"one file ({kind}), ten methods": [folder / f"{kind}.pte"] for kind in _LOADED}
    for of, name in (("alone", "ten files of these paths"), ("bundle", "ten files of the bundle")):
        cases[name] = [folder / of / f"{domain}.pte" for domain in domains]
    together = f"one file ({SHARED}), its method of all domains"
    cases[together] = [folder / f"{SHARED}.pte"]
    rows = []
    for name, files in cases.items():
        found = []
        for cache in ([], ["--weights-cache"]):
            command = [sys.executable, "-m", "benchmarks.loaded", *map(str, files), *cache]
            command += ["--together"] * (name == together)
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1])["MB"])
        rows.append([name, *(f"{of:.1f}" for of in found)])
    return Table("memory", ["loaded", "MB", "MB, weights cache"], rows)


if __name__ == "__main__":
    main()
