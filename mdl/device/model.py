"""What an exported model can be asked, whatever its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mdl.device.executorch_model import ExecutorchModel
from mdl.device.metadata import Metadata
from mdl.device.onnx_model import Logits, OnnxModel
from mdl.device.preparation import Colours
from mdl.errors import UserError


class Model(Protocol):
    """An exported model of several domains."""

    @property
    def domains(self) -> list[str]: ...

    def metadata(self, domain: str) -> Metadata:
        """Raises UserError where there is no such domain."""

    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]."""


def open_model(path: Path) -> Model:
    """By its name: a .pte file, or a folder of .onnx files, or one of these.

    Raises UserError where it is neither, damaged, or its runtime is not installed.
    """
    if path.suffix == ".pte":
        return ExecutorchModel(path)
    if path.suffix == ".onnx" or path.is_dir():
        return OnnxModel(path)
    if not path.exists():
        raise UserError(
            f"No model at {path}; expected a .pte file, or a folder of .onnx files, as "
            "python -m mdl.export writes them."
        )
    raise UserError(
        f"{path} is no exported model; expected a .pte file, a folder of .onnx files or one of "
        "them, as python -m mdl.export writes them."
    )
