"""Whether an exported model answers as the trained network does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mdl.device.onnx_model import Logits

TOLERANCE = 1e-3
"""Greatest difference of logits of an export in floating point; they are of some ten."""


@dataclass(frozen=True)
class Agreement:
    """Of one domain's images. Accuracies are of the labelled ones."""

    images: int
    greatest_difference: float  # of logits
    same_answer: float  # share of images
    trained_accuracy: float
    exported_accuracy: float


def compare(trained: Logits, exported: Logits, labels: npt.NDArray[np.int64]) -> Agreement:
    """Logits [n, classes] of both, labels [n], -1 where none is known."""
    known = labels >= 0
    ours, theirs = exported.argmax(1), trained.argmax(1)
    return Agreement(
        len(labels),
        float(np.abs(exported - trained).max(initial=0)),
        float((ours == theirs).mean()),
        *(float((of == labels)[known].mean()) if known.any() else 0.0 for of in (theirs, ours)),
    )
