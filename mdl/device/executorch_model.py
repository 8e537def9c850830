"""An exported .pte file, run by ExecuTorch's Python bindings, which need torch."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mdl.device.metadata import KEY, TOGETHER, Metadata
from mdl.device.onnx_model import Logits
from mdl.device.preparation import Colours
from mdl.device.quiet import quietly
from mdl.errors import UserError

_HEADER = struct.Struct("<4s4sIQQQ")  # of file offset 4: format, header, its size, three sizes
_MAGIC = b"ET12", b"eh00"


class ExecutorchModel:
    """A .pte file with a method per domain.

    Raises UserError where it is not there, damaged, or the runtime is not installed.
    """

    def __init__(self, file: Path) -> None:
        check_whole(file)
        try:
            with quietly():
                from executorch.runtime import Runtime
        except ImportError as error:
            raise UserError(
                f"{file} needs ExecuTorch's Python bindings, which are not installed: "
                "pip install -c constraints.txt -e '.[device]'"
            ) from error
        self._program: Any = Runtime.get().load_program(file)
        others = KEY, TOGETHER
        self.domains = sorted(name for name in self._program.method_names if name not in others)
        if KEY not in self._program.method_names:
            raise UserError(
                f"{file} holds no {KEY}; expected a file that python -m mdl.export wrote."
            )
        text = self._program.load_method(KEY).execute(())[0]
        self._metadata = Metadata.loads(text, file)

    def metadata(self, domain: str) -> Metadata:
        """Raises UserError where there is no such domain."""
        return self._metadata.of(domain)

    def method(self, domain: str) -> Any:
        """The executorch.runtime.Method of a domain, loaded when it is first asked for."""
        return self._program.load_method(domain)

    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]; one image at a time."""
        return _executed(self.method(domain), colours, 0)

    @property
    def together(self) -> TogetherMethod | None:
        """The method of all domains on one input; None where the file has none."""
        if TOGETHER not in self._program.method_names:
            return None
        return TogetherMethod(self.method(TOGETHER), self._metadata)


class TogetherMethod:
    """The method of all domains on one input, in a .pte file of a network of shared batch norm."""

    def __init__(self, method: Any, metadata: Metadata) -> None:
        self.method, self._metadata = method, metadata
        self.domains = metadata.alike()

    def metadata(self, domain: str) -> Metadata:
        """Raises UserError where there is no such domain."""
        return self._metadata.of(domain)

    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]; one image at a time."""
        return _executed(self.method, colours, self.domains.index(domain))


def _executed(method: Any, colours: Colours, output: int) -> Logits:
    import torch

    images = torch.from_numpy(colours).split(1)
    return np.concatenate([method.execute((image,))[output].numpy() for image in images])


def use_threads(count: int) -> None:
    """Sets how many threads ExecuTorch computes with, in this process; torch's are others.

    It begins with one per core. To be called before a program is loaded.
    """
    with quietly():
        from executorch.extension.pybindings import portable_lib

        portable_lib._unsafe_reset_threadpool(count)


def check_whole(file: Path) -> None:
    """Raises UserError where a .pte file is missing or shorter than its header says.

    Its runtime reads beyond the end of such a file.
    """
    if not file.is_file():
        raise UserError(f"No model at {file}; expected a .pte file of python -m mdl.export.")
    found = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(4)
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or (fields := _HEADER.unpack(header))[:2] != _MAGIC:
        raise UserError(
            f"{file} is no ExecuTorch program; expected a .pte file of python -m mdl.export."
        )
    program, segments, segment_bytes = fields[3:]
    expected = max(program, segments + segment_bytes)
    if found < expected:
        raise UserError(
            f"{file} is cut short: it has {found:,} bytes, its header says {expected:,}. Copy or "
            "export it again."
        )
