"""What .pte files take of memory once each of their methods has run.

    python -m benchmarks.loaded FILE ... [--weights-cache] [--together]

Prints JSON: MB that became the process's own, and the sum of a logit of each method, which the
cache must not change. --together: of the method of all domains alone, which then answers for all
(of batch norm shared). XNNPACK packs the weights of each method for itself; with its weights cache
those of equal weights and bias once. Needs g++ (module.cpp).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mdl.device.executorch_model import ExecutorchModel, use_threads
from mdl.device.metadata import TOGETHER
from mdl.device.quiet import quietly

_SOURCE = Path(__file__).with_name("module.cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--weights-cache", action="store_true")
    parser.add_argument("--together", action="store_true")
    options = parser.parse_args()
    told = [ExecutorchModel(file) for file in options.files]
    methods = [
        (file, domain, of.metadata(domain).domain(domain).image_size)
        for file, of in zip(options.files, told, strict=True)
        for domain in of.domains
    ]
    if options.together:
        methods = [(file, TOGETHER, side) for file, side in {f: s for f, _, s in methods}.items()]
    use_threads(1)
    library = _library()
    first = methods[0]
    _run(library, _opened(library, first[0], False), *first[1:])  # the runtime
    before, logits = _own_bytes(), 0.0
    modules = {file: _opened(library, file, options.weights_cache) for file in options.files}
    for file, domain, side in methods:
        logits += _run(library, modules[file], domain, side)
    print(json.dumps({"MB": (_own_bytes() - before) / 1e6, "logits": logits}))


def _opened(library: Any, file: Path, weights_cache: bool) -> int:
    module: int | None = library.open_module(str(file).encode(), weights_cache)
    if module is None:
        raise RuntimeError(f"ExecuTorch refused {file} with weights_cache={weights_cache}")
    return module


def _run(library: Any, module: int, domain: str, side: int) -> float:
    image = np.zeros((1, 3, side, side), np.float32)
    logit = np.zeros(1, np.float32)
    status = library.run_method(module, domain.encode(), image.ctypes.data, side, logit.ctypes.data)
    if status:
        raise RuntimeError(f"ExecuTorch ended '{domain}' with error {status}")
    return float(logit[0])


def _library() -> Any:
    """module.cpp, compiled, beside the package's own library."""
    with quietly():
        from executorch.extension.pybindings import _portable_lib
    package = Path(_portable_lib.__file__).parents[2]
    ctypes.CDLL(_portable_lib.__file__, ctypes.RTLD_GLOBAL)
    include = package / "include"
    c10 = include / "executorch/runtime/core/portable_type/c10"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "module.so"
        subprocess.run(
            ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{include}", f"-I{c10}",
             "-DC10_USING_CUSTOM_GENERATED_MACROS", str(_SOURCE), "-o", str(file)],
            check=True,
        )  # fmt: skip
        library = ctypes.CDLL(str(file))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    library.open_module.restype = pointer
    library.open_module.argtypes = [text, ctypes.c_bool]
    library.run_method.argtypes = [pointer, text, pointer, number, pointer]
    return library


def _own_bytes() -> int:
    """Of the process's pages, those that are written and its own."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(of for of in lines if of.startswith("Private_Dirty:")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
