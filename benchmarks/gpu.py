"""The rows of the speed table that need a GPU; and that it computes the same.

    python -m benchmarks.gpu [--rounds 20] [--only PART ...]

64 px in the full space, 10 domains, 32 images of each. First what has to hold: the grouped pass
gives what domain by domain gives, compiled what uncompiled gives, bf16 what float32 gives nearly.
Then the rows, as benchmarks.speed prints them; those with a goal come first. Compiling takes some
three minutes; how long all parts take has not been measured.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.graphed_nodes import Capture, CudaCapture, GraphedNetwork
from benchmarks.problem import Problem, Stepper, problem
from benchmarks.speed import (
    Row,
    Setting,
    by_domain,
    compiled,
    engine,
    memory,
    retrain_module,
    search,
    search_module,
    shared_paths,
    stepping,
    steps_of,
    whole,
)
from benchmarks.static import StaticNetwork
from mdl.data.transforms import Batch, images_of
from mdl.networks.multipath import MultiPathNetwork
from mdl.training.gradient_graph import GradientGraph

BATCH = 32
STEPS_UNTIL_CAPTURED = 150  # then hardly a node is met for the first or second time
T = TypeVar("T")


def check(p: Problem) -> Iterator[Row]:
    """Greatest differences of logits: grouped and bf16 against domain by domain."""
    batch, paths = p.batch(), shared_paths(p)
    network = p.derived(paths).eval()
    with torch.no_grad():
        apart = by_domain(network, paths, batch)
        together = whole(network, paths, batch)
        with torch.autocast(p.device.type, torch.bfloat16):
            half = whole(network, paths, batch)
    yield from _differences({"grouped": (together, 1e-3), "bf16": (half, 0.1)}, apart)


def _differences(
    found: Mapping[str, tuple[Mapping[str, Tensor], float]], apart: Mapping[str, Tensor]
) -> Iterator[Row]:
    scale = max(float(of.abs().max()) for of in apart.values())
    for name, (logits, most) in found.items():
        off = max(float((logits[d].float() - apart[d]).abs().max()) for d in apart) / scale
        yield Row(
            f"logits, {name} / as it is otherwise: greatest difference", f"{most}", f"{off:.1e}"
        )


def grouped(setting: Setting, p: Problem) -> Iterator[Row]:
    """Grouped against domain by domain, in float32 and bf16; and a step as it is trained."""
    batch = p.batch()
    for kind, paths in {
        "a derived network": shared_paths(p),
        "ten random paths": p.random_paths(0),
        "one common path": p.uniform_paths(),
    }.items():
        for precision in ("float32", "bf16"):
            cast = partial(_in, precision, p)
            networks = p.derived(paths), p.derived(paths)
            forward = partial(whole, networks[0], paths, batch)
            by_itself = partial(by_domain, networks[1], paths, batch)
            trained = steps_of(retrain_module(p, paths), batch)
            times = setting.turns(
                {
                    "grouped": stepping(networks[0], batch, cast(forward)),
                    "loop": stepping(networks[1], batch, cast(by_itself)),
                    "trained": cast(trained),
                }
            )
            place = f"64 px, {BATCH} images of 10 domains, {kind}, {precision}"
            yield Row(
                f"{place}: kernel by kernel, grouped / domain by domain",
                "at least 3",
                f"{times.ratio('loop', 'grouped')}; {times.median('grouped') * 1e3:.0f} ms a step",
            )
            yield Row(
                f"{place}: a step as it is trained, one CUDA graph / domain by domain",
                "at least 3",
                f"{times.ratio('loop', 'trained')}; {times.median('trained') * 1e3:.1f} ms a step",
            )


def against_one_batch(setting: Setting, p: Problem) -> Iterator[Row]:
    """Compiled retraining of ten domains on one path against as many images of one domain.

    Both are launched as CUDA graphs.
    """
    paths, batch = p.uniform_paths(), p.batch()
    ours, plain = retrain_module(p, paths), retrain_module(p, paths)
    ours.compile_network()
    count = p.batch_size * len(p.domains)
    classes = p.num_classes[p.domains[0]]
    one = Problem(p.space, {"one": classes}, p.image_size, count, p.device)
    static = StaticNetwork(p.space, one.uniform_paths(), one.num_classes, count, p.image_size).to(
        p.device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    fast = torch.compile(static, fullgraph=True, dynamic=False)
    images: Batch = one.batch()
    stepper = Stepper(static)
    graph = GradientGraph(lambda given: stepper.gradients(fast(images_of(given)), given))

    def step() -> None:
        graph.launch(images)
        graph.result()
        stepper.optimizer.step()

    turns = {"ours": steps_of(ours, batch), "plain": steps_of(plain, batch), "one": step}
    times = setting.turns(turns)
    yield Row(
        "64 px: images per second, compiled retraining / one compiled batch of the same FLOPs",
        "at least 0.8",
        f"{times.ratio('one', 'ours')}; {times.median('ours') * 1e3:.1f} ms a step",
    )
    yield Row(
        "64 px, one common path: images per second of retraining, compiled / uncompiled",
        "at least 1.2",
        str(times.ratio("plain", "ours")),
    )
    with torch.no_grad():
        network = ours.network.eval()
        apart = by_domain(network, paths, batch)
        shapes = {domain: images.shape for domain, images in images_of(batch).items()}
        found = network.follow(images_of(batch), network.route(shapes, paths))
    yield from _differences({"compiled": (found, 1e-3)}, apart)


def _in(precision: str, p: Problem, call: Callable[[], T]) -> Callable[[], T]:
    def cast() -> T:
        with torch.autocast(p.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return call()

    return cast


def formats(setting: Setting, p: Problem) -> Iterator[Row]:
    """The memory formats that a network may have."""
    batch, paths = p.batch(), shared_paths(p)
    modules = {"contiguous": retrain_module(p, paths), "last": retrain_module(p, paths)}
    modules["contiguous"].network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain = {d: (images.contiguous(), labels) for d, (images, labels) in batch.items()}
    times = setting.turns(
        {
            name: steps_of(of, plain if name == "contiguous" else batch)
            for name, of in modules.items()
        },
    )
    yield Row(
        "64 px: a step, contiguous / channels last", "", str(times.ratio("contiguous", "last"))
    )


def nodes(
    setting: Setting, p: Problem, capture: Callable[[], Capture] = CudaCapture
) -> Iterator[Row]:
    """Steps of a search, other paths at each: its nodes as graphs against kernel by kernel."""
    both = {"train": p.batch(), "held_out": p.batch()}
    for kind, of in {
        "weight step on one common path": {"warmup": 1.0, "common": True},
        "weight step on ten random paths": {"warmup": 1.0},
        "whole step on ten random paths": {"warmup": 0.0},
    }.items():
        networks = {
            "kernels": p.supernet(tied=True),
            "graphs": p.placed(GraphedNetwork(*p.of_supernet, tied=True, capture=capture())),
        }
        gc.collect()  # modules that hold graphs are in cycles
        torch.cuda.empty_cache()
        turns = {
            by: steps_of(search_module(p, network=network, **of), both)  # type: ignore[arg-type]
            for by, network in networks.items()
        }
        before, started = torch.cuda.memory_reserved(), time.perf_counter()
        for _ in range(STEPS_UNTIL_CAPTURED):
            turns["graphs"]()
        setting.settle()
        seconds = time.perf_counter() - started
        held = (torch.cuda.memory_reserved() - before) / 2**30
        times = setting.turns(turns)
        yield Row(
            f"{p.image_size} px, {p.batch_size} images of {len(p.domains)} domains, a search's "
            f"{kind}: kernel by kernel / nodes as graphs",
            "",
            f"{times.ratio('kernels', 'graphs')}; {times.median('graphs') * 1e3:.1f} ms; the "
            f"first {STEPS_UNTIL_CAPTURED} took {seconds:.0f} s and {held:.1f} GiB",
        )
        yield from _as_uncaptured(p, networks["graphs"])
        networks.clear()
        turns.clear()


def _as_uncaptured(p: Problem, graphs: MultiPathNetwork) -> Iterator[Row]:
    """Logits of a network of graphs against those of the same weights without."""
    plain, paths, images = p.supernet(tied=True), p.random_paths(0), images_of(p.batch())
    plain.load_state_dict(graphs.state_dict())
    with torch.no_grad():
        expected = plain(images, paths)
        found = [graphs(images, paths) for _ in range(3)][-1]  # the third is a replay
    yield from _differences({"nodes as graphs": (found, 1e-3)}, expected)


def small_images(setting: Setting) -> Problem:
    return problem("32 px, small images", device=setting.device)


PARTS: dict[str, Callable[[Setting, Problem], Iterator[Row]]] = {
    "check": lambda _, p: check(p),
    "grouped": grouped,
    "formats": formats,
    "nodes of small images": lambda setting, _: nodes(setting, small_images(setting)),
    "nodes": nodes,
    "one batch": against_one_batch,
    "memory": lambda setting, _: memory(setting),
    "search": lambda setting, _: search(setting),
    "engine": lambda setting, _: engine(setting),
    "compiled": lambda setting, _: compiled(setting),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("No GPU was found: these rows are not measured.")
    setting = Setting(options.rounds, device="cuda")
    p = problem("64 px", batch_size=BATCH, device="cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| what | goal | found |\n|---|---|---|")
    for name in options.only:
        for row in PARTS[name](setting, p):
            print(f"| {row.what} | {row.goal} | {row.found} |", flush=True)


if __name__ == "__main__":
    main()
