"""ONNX files, one per domain, over one file of weights in which every tensor is once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mdl.device.extra import lacks_extra
from mdl.device.int8 import quantised_graph
from mdl.device.metadata import KEY, Metadata
from mdl.device.onnx_model import ALL_DOMAINS
from mdl.device.plain import PlainPath, PlainPaths
from mdl.device.preparation import Colours
from mdl.device.quiet import quietly
from mdl.errors import UserError
from mdl.whole_files import write_bytes, write_whole

WEIGHTS = "weights.bin"
_ALIGNMENT = 64  # bytes
_LEAST_BYTES = 256  # smaller tensors stay in the graph, which holds as much about one that does not


def write_onnx(
    folder: Path,
    paths: Mapping[str, PlainPath],
    metadata: Metadata,
    calibration: Mapping[str, Colours] | None = None,
    together: bool = True,
) -> list[Path]:
    """Writes `<domain>.onnx`, `all.domains.onnx` and their common weights into a folder.

    A graph takes any number of images, 'image' [n, 3, s, s] -> 'logits' [n, classes]. The graph of
    all domains gives 'logits_<domain>' each; it is of the domains whose images have the sizes
    of the first one's; how its image is made square is for the caller to say. Gives the files.
    Graphs of an earlier export in the folder are taken away.

    calibration: images [n, 3, s, s] of each domain, to quantise its graph to INT8 by.
    together: whether there is a graph of all domains; there is none in INT8.

    Raises UserError where onnx or onnxscript is not installed, or the folder holds graphs or
    weights of others.
    """
    _check_own(folder)
    models = {}
    for domain, path in paths.items():
        side = metadata.domain(domain).image_size
        model = _graph(path, side, ["logits"], metadata.of(domain))
        if calibration is not None:
            model = quantised_graph(model, calibration[domain])
        models[f"{domain}.onnx"] = model
    alike = metadata.alike()
    if together and len(alike) > 1 and calibration is None:
        every = PlainPaths({domain: paths[domain] for domain in alike})
        names = [f"logits_{domain}" for domain in alike]
        side = metadata.domain(alike[0]).image_size
        models[ALL_DOMAINS] = _graph(every, side, names, metadata.of(*alike))
    weights = _Weights()
    for model in models.values():
        weights.take(model)

    def write(beside: Path) -> None:
        beside.write_bytes(weights.content)
        for stale in folder.glob("*.onnx"):  # they would take their weights from wrong places
            stale.unlink()

    write_whole(folder / WEIGHTS, write)
    for name, model in models.items():
        write_bytes(folder / name, model.SerializeToString())
    return [folder / name for name in (WEIGHTS, *models)]


def _check_own(folder: Path) -> None:
    """Raises UserError where a folder holds what no export wrote: it would be lost."""
    own = 0
    for file in sorted(folder.glob("*.onnx")):
        # told by the bytes of the file: it may be damaged
        if KEY.encode() not in file.read_bytes():
            raise UserError(
                f"{file} is no graph of an export, and exports take the folder for themselves. "
                "Choose another with --out, or move it away."
            )
        own += 1
    if not own and (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder / WEIGHTS} lies beside no graph of an export, and would be written over. "
            "Choose another folder with --out, or move it away."
        )


def _graph(module: nn.Module, side: int, outputs: list[str], metadata: Metadata) -> Any:
    """An onnx.ModelProto."""
    count = torch.export.Dim("n", min=1, max=4096)
    with quietly():
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise lacks_extra(error) from error
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, side, side),),
            input_names=["image"],
            output_names=outputs,
            dynamic_shapes=({0: count},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    _forget_its_making(model)
    model.metadata_props.add(key=KEY, value=metadata.dumps())
    return model


def _forget_its_making(model: Any) -> None:
    """Drops stack traces and shapes in between, which were nine tenths of a graph's file."""
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")


class _Weights:
    """Tensors one after the other, equal ones once."""

    def __init__(self) -> None:
        self.content = b""
        self._places: dict[bytes, int] = {}

    def take(self, model: Any) -> None:
        """Moves a model's tensors here and leaves where they are."""
        import onnx
        from onnx import numpy_helper

        for tensor in model.graph.initializer:
            raw = numpy_helper.to_array(tensor).tobytes()
            if len(raw) < _LEAST_BYTES:
                continue
            place = self._place(raw)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in {"location": WEIGHTS, "offset": place, "length": len(raw)}.items():
                tensor.external_data.add(key=key, value=str(value))

    def _place(self, raw: bytes) -> int:
        name = hashlib.sha256(raw).digest()
        if name not in self._places:
            self.content += b"\0" * (-len(self.content) % _ALIGNMENT)
            self._places[name] = len(self.content)
            self.content += raw
        return self._places[name]
