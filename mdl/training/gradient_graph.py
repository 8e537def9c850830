"""A step's forward and backward pass as one CUDA graph, launched as a whole.

A multi-path network's step is thousands of small kernels; on a GPU it takes as long as a process
takes to launch them one by one, several times what the GPU needs for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from mdl.data.transforms import Batch
from mdl.networks.rank_norm import several_ranks

T = TypeVar("T")

_WARM_UP = 3  # steps before the capture: libraries choose their algorithms in the first ones


def can_capture(device: torch.device) -> bool:
    """Whether a step's passes can be captured: on a GPU, on one rank alone."""
    return device.type == "cuda" and not several_ranks()


class GradientGraph(Generic[T]):
    """Runs `compute` on batches of one shape: a few times as it is, then as a captured graph.

    compute: takes a batch, sets the gradients of parameters (beginning from none), and gives
    tensors. All that it does on the device is repeated for each batch; what it does in Python is
    done in the first steps alone. It must not wait for the device.

    Each has a stream of its own, so that several that are launched one after the other run side
    by side.
    """

    def __init__(self, compute: Callable[[Batch], T]) -> None:
        self._compute = compute
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._steps = 0
        self._batch: Batch  # where a replay takes its batch from
        self._given: T

    def launch(self, batch: Batch) -> None:
        """Begins to compute; gradients are to be read after `result` alone."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            if self._graph is None and self._steps < _WARM_UP:
                self._given = self._compute(batch)
                self._steps += 1
                return
            if self._graph is None:
                self._graph = self._capture(batch)
            for domain, (images, labels) in batch.items():
                self._batch[domain][0].copy_(images)
                self._batch[domain][1].copy_(labels)
            self._graph.replay()

    def result(self) -> T:
        """The tensors that `compute` gave, on the caller's stream; the next step writes over it."""
        torch.cuda.current_stream().wait_stream(self._stream)
        return self._given

    def _capture(self, batch: Batch) -> torch.cuda.CUDAGraph:
        self._batch = {d: (images.clone(), labels.clone()) for d, (images, labels) in batch.items()}
        graph = torch.cuda.CUDAGraph()
        # other threads, that hand images over, go on with what they do meanwhile
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._given = self._compute(self._batch)
        return graph
