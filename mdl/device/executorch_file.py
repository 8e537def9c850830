"""One ExecuTorch program with a method per domain, weights that are equal stored once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mdl.device.extra import lacks_extra
from mdl.device.int8 import quantised_program
from mdl.device.metadata import KEY, TOGETHER, Metadata
from mdl.device.plain import PlainPath, PlainPaths
from mdl.device.preparation import Colours
from mdl.device.quiet import quietly
from mdl.whole_files import write_whole


def write_executorch(
    file: Path,
    paths: Mapping[str, PlainPath],
    metadata: Metadata,
    calibration: Mapping[str, Colours] | None = None,
    together: bool = True,
) -> None:
    """Lowers each path to XNNPACK, for one image at a time, and writes them as one program.

    Where paths begin with the same nodes, batch norm being shared, a further method answers for
    all domains on one image and computes what is common once: [1, 3, s, s] -> logits [1, classes]
    of each of `metadata.alike()`. It adds little to the file: its weights are there already.

    calibration: images [n, 3, s, s] of each domain, to quantise its path to INT8 by.
    together: whether there may be that method; there is none in INT8.

    Raises UserError where executorch is not installed.
    """
    with quietly():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
                XnnpackPartitioner,
            )
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise lacks_extra(error) from error
        programs = {}
        for domain, path in paths.items():
            if calibration is None:
                side = metadata.domain(domain).image_size
                programs[domain] = torch.export.export(path, (torch.zeros(1, 3, side, side),))
            else:
                programs[domain] = quantised_program(path, calibration[domain])
        alike = metadata.alike()
        every = PlainPaths({domain: paths[domain] for domain in alike}).eval()
        if together and calibration is None and every.has_common_work:
            side = metadata.domain(alike[0]).image_size
            programs[TOGETHER] = torch.export.export(every, (torch.zeros(1, 3, side, side),))
        program = to_edge_transform_and_lower(
            programs,
            partitioner=[XnnpackPartitioner()],
            constant_methods={KEY: metadata.dumps()},
        ).to_executorch()

    def write(beside: Path) -> None:
        with beside.open("wb") as stream:
            program.write_to_file(stream)

    write_whole(file, write)
