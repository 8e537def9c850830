"""Exported ONNX files, run by ONNX Runtime. Needs onnxruntime and numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mdl.device.metadata import KEY, TOGETHER, Metadata
from mdl.device.preparation import Colours
from mdl.errors import UserError

ALL_DOMAINS = f"{TOGETHER}.onnx"
"""The graph of all domains on one input."""

Logits = npt.NDArray[np.float32]


class OnnxModel:
    """A folder of `<domain>.onnx` files over common weights, or one such file.

    threads: of the CPU; None: as ONNX Runtime finds best.
    Raises UserError where there is none, or one cannot be loaded.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        if path.name == ALL_DOMAINS:
            raise UserError(
                f"{path} answers for all domains in one graph, which is for programs of your own "
                f"(docs/on-device.md). Name its folder: {path.parent}"
            )
        files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        self._files = {file.stem: file for file in files if file.name != ALL_DOMAINS}
        if not self._files or not files[0].is_file():
            below = [path / "onnx", path / "export" / "onnx", *path.glob("*.pte")]
            there = " or ".join(str(of) for of in below if of.exists())
            raise UserError(
                f"No .onnx file at {path}; expected the folder, or one file of it, that "
                f"python -m mdl.export wrote{f': {there}' if there else ''}."
            )
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    @property
    def domains(self) -> list[str]:
        return list(self._files)

    def metadata(self, domain: str) -> Metadata:
        """Raises UserError where there is no such domain."""
        if domain not in self._files:
            Metadata(dict.fromkeys(self._files), {}).domain(domain)  # type: ignore[arg-type]
        text = self.session(domain).get_modelmeta().custom_metadata_map.get(KEY, "")
        return Metadata.loads(text, self._files[domain])

    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]."""
        logits: Logits = self.session(domain).run(None, {"image": colours})[0]
        return logits

    def session(self, domain: str) -> Any:
        """The onnxruntime.InferenceSession of a domain, opened when it is first asked for."""
        if domain not in self._sessions:
            self._sessions[domain] = open_session(self._files[domain], self._threads)
        return self._sessions[domain]


class TogetherModel:
    """The graph of all domains on one input, in a folder of ONNX files."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / ALL_DOMAINS
        self._session = open_session(self._file)
        self._outputs = [of.name for of in self._session.get_outputs()]
        self.domains = [name.removeprefix("logits_") for name in self._outputs]

    def metadata(self, domain: str) -> Metadata:
        """Raises UserError where there is no such domain."""
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY, "")
        return Metadata.loads(text, self._file).of(domain)

    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]."""
        logits: Logits = self._session.run([f"logits_{domain}"], {"image": colours})[0]
        return logits


def open_session(file: Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session. Raises UserError where the file cannot be loaded."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{file} needs onnxruntime, which is not installed: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is fatal; the exception says the rest
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises kinds of its own on damaged files
        raise UserError(
            f"{file} cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]} It may be cut "
            "short, or its weights be missing beside it; export again: python -m mdl.export RUN"
        ) from error
