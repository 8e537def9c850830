"""What capturing each node of a super-network as CUDA graphs would give a search on a GPU.

A search takes other paths at every step, so that no step of it can be captured; but its nodes stay
the same, and each is some twenty kernels forward and forty backward, which take a process longer
to launch than a GPU to compute. A node is captured for each domain by itself, and for all domains
together; of the other companies, which are too many, each domain is called by itself.

A contender of benchmarks.gpu ("nodes"), and no part of the engine before it is measured there.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mdl.networks.blocks import Company, TiedBlock
from mdl.networks.multipath import MultiPathNetwork, Route
from mdl.space.search_space import Path

Memory = tuple[int, Company]
Capture = Callable[[Callable[[], None], Memory], Callable[[], None]]
"""Takes what is to be captured and the memory that it may use; gives what computes it again."""


class GraphedNetwork(MultiPathNetwork):
    """A super-network with batch norm per domain, whose nodes are called as graphs."""

    def __init__(self, *of: Any, capture: Capture, **options: Any) -> None:
        super().__init__(*of, running=False, **options)
        self.graphs = NodeGraphs(capture)
        self._layers = {node.key: node.layer for node in self.users}

    def route(
        self,
        shapes: Mapping[str, torch.Size],
        paths: Mapping[str, Path],
        call_bytes: int | None = None,
    ) -> Route:
        """With calls of all domains, or of one by itself, and of no other company."""
        calls = super().route(shapes, paths)
        return tuple(
            (key, of)
            for key, members in calls
            for of in ([members] if len(members) == len(shapes) else [(d,) for d in members])
        )

    def call_node(self, key: str, x: Tensor, company: Company) -> Tensor:
        return self.graphs.call(key, self.nodes[key], self._layers[key], x, company)


class NodeGraphs:
    """Calls nodes: a first time as they are, then as graphs.

    Graphs of one layer and company use the same memory, since a step calls one of them alone,
    forward and then backward. So they take what one path's features take for each company, and
    beside it the gradients of all weights that were visited.

    A node must compute the same for the same input and weights: no running statistics, no ranks.
    Its weights must stay where they are in memory, gradients begin from None in each step, and
    a pass backward comes at most once, before the same layer is called again; what a step left in
    the weights' gradients holds until then. Precision and what is trained stay as they were.

    capture: how passes are captured; `CudaCapture` on a GPU.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._calls: dict[tuple[object, ...], _NodeCall] = {}
        self._places: dict[tuple[object, ...], _Place] = {}

    def call(self, name: str, node: nn.Module, layer: int, x: Tensor, company: Company) -> Tensor:
        """What the node of that name, at a layer, makes of x [n_1 + ... + n_G, C, H, W]."""
        key = name, company, x.shape, x.dtype, torch.is_grad_enabled(), x.requires_grad
        if key not in self._calls:
            # as it is, for once: libraries load their kernels and choose among them
            made: Tensor = node(x, company)
            places = self._place(layer, company, x), self._place(layer + 1, company, made)
            self._calls[key] = _NodeCall(node, company, *places, x, made)
            return made
        call = self._calls[key]
        if not call.captured:
            call.capture(self._capture, (layer, company))
        return call(x)

    def _place(self, layer: int, company: Company, like: Tensor) -> _Place:
        key = layer, company, like.shape, like.dtype
        if key not in self._places:
            self._places[key] = _Place(like.detach())
        return self._places[key]


class _Place:
    """Where a layer's nodes find a company's features, and leave the gradient of these.

    What the layer before leaves its features in: so they are handed on without a copy.
    """

    def __init__(self, like: Tensor) -> None:
        self.features, self.gradient = torch.empty_like(like), torch.empty_like(like)


class _NodeCall:
    """A node's passes for one company, from one place to the next.

    x, made: of a call that was not captured.
    """

    def __init__(
        self,
        node: nn.Module,
        company: Company,
        before: _Place,
        after: _Place,
        x: Tensor,
        made: Tensor,
    ) -> None:
        self._before, self._after = before, after
        self._x = before.features.detach().requires_grad_(x.requires_grad)
        self._learns = made.requires_grad
        self._node: nn.Module = node.largest if isinstance(node, TiedBlock) else node
        self._rest = (company, node.block) if isinstance(node, TiedBlock) else (company,)
        held = dict(self._node.named_parameters())
        self._weights = {n: of for n, of in held.items() if self._learns and of.requires_grad}
        # in the same memory, but of no graph that other calls of the step have made, which would
        # tie what is captured to their stream
        self._leaves = {n: of.detach().requires_grad_() for n, of in self._weights.items()}
        self._made: Tensor | None = None
        self._gradients: tuple[Tensor | None, ...] = ()
        self._replays: list[Callable[[], None]] = []

    @property
    def captured(self) -> bool:
        return bool(self._replays)

    def capture(self, capture: Capture, memory: Memory) -> None:
        passes = [self._compute, self._differentiate] if self._learns else [self._compute]
        self._replays = [capture(of, memory) for of in passes]
        self._made = None  # others may have its memory

    def __call__(self, x: Tensor) -> Tensor:
        made: Tensor = _Replay.apply(self, x, *self._weights.values())
        return made

    def forward(self, x: Tensor) -> Tensor:
        _put(x, self._before.features)
        self._replays[0]()
        return self._after.features.detach()

    def backward(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and of the weights."""
        _put(gradient, self._after.gradient)
        self._replays[1]()
        of_x = self._before.gradient.detach() if self._x.requires_grad else None
        return of_x, *(None if of is None else of.detach() for of in self._gradients)

    def _compute(self) -> None:
        with torch.set_grad_enabled(self._learns):
            self._made = functional_call(self._node, self._leaves, (self._x, *self._rest))
        self._after.features.copy_(self._made.detach())

    def _differentiate(self) -> None:
        assert self._made is not None
        leaves = list(self._leaves.values())
        inputs = [self._x, *leaves] if self._x.requires_grad else leaves
        found = torch.autograd.grad(self._made, inputs, self._after.gradient, allow_unused=True)
        if self._x.requires_grad:
            assert found[0] is not None
            self._before.gradient.copy_(found[0])
        self._gradients = found[len(inputs) - len(leaves) :]


def _put(given: Tensor, place: Tensor) -> None:
    if given.data_ptr() != place.data_ptr():  # what the neighbouring layer left lies there
        place.copy_(given)


class _Replay(torch.autograd.Function):
    """A captured call among others that are not."""

    @staticmethod
    def forward(ctx: Any, call: _NodeCall, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.call = call
        return call.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.call.backward(gradients[0])


class CudaCapture:
    """Captures what is launched on a GPU as CUDA graphs."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pools: dict[Memory, Any] = {}

    def __call__(self, compute: Callable[[], None], memory: Memory) -> Callable[[], None]:
        if memory not in self._pools:
            self._pools[memory] = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), _casts_of_its_own(), _nothing_collected():
            # not `torch.cuda.graph`, which gives all cached memory back before each of a
            # thousand captures; other threads, that hand images over, go on meanwhile
            graph.capture_begin(pool=self._pools[memory], capture_error_mode="thread_local")
            try:
                compute()
            except BaseException:
                with suppress(RuntimeError):  # it would be told in place of the cause
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay


@contextmanager
def _casts_of_its_own() -> Iterator[None]:
    """Lets autocast cast weights anew: what was cast before would not be cast again in a replay."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Lets no cycle be collected that holds another graph, whose end would break a capture."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
