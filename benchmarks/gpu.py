"""The rows of the speed table that need a GPU, in under ten minutes; and that it computes the same.

    python -m benchmarks.gpu [--rounds 20]

64 px in the full space, 10 domains, 32 images of each. First what has to hold: the grouped pass
gives what domain by domain gives, compiled what uncompiled gives, bf16 what float32 gives nearly.
Then the rows, as benchmarks.speed prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

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
    shared_paths,
    stepping,
    steps_of,
    whole,
)
from benchmarks.static import StaticNetwork
from mdl.data.transforms import Batch, images_of

BATCH = 32


def check(p: Problem) -> Iterator[Row]:
    """Greatest differences of logits: grouped, compiled and bf16 against domain by domain."""
    batch, paths = p.batch(), shared_paths(p)
    network = p.derived(paths).eval()
    with torch.no_grad():
        apart = by_domain(network, paths, batch)
        together = whole(network, paths, batch)
        follow = torch.compile(network.follow, fullgraph=True, dynamic=False)
        shapes = {domain: images.shape for domain, images in images_of(batch).items()}
        fast = follow(images_of(batch), network.route(shapes, paths))
        with torch.autocast(p.device.type, torch.bfloat16):
            half = whole(network, paths, batch)
    scale = max(float(of.abs().max()) for of in apart.values())
    for name, found, most in (
        ("grouped", together, 1e-3),
        ("compiled", fast, 1e-3),
        ("bf16", half, 0.1),
    ):
        off = max(float((found[d].float() - apart[d]).abs().max()) for d in apart) / scale
        yield Row(
            f"logits, {name} / domain by domain: greatest difference", f"{most}", f"{off:.1e}"
        )


def grouped(setting: Setting, p: Problem) -> Iterator[Row]:
    """Grouped against domain by domain, in float32 and bf16."""
    batch, paths = p.batch(), shared_paths(p)
    for precision in ("float32", "bf16"):
        cast = partial(_in, precision, p)
        networks = p.derived(paths), p.derived(paths)
        times = setting.turns(
            {
                "grouped": stepping(
                    networks[0], batch, cast(partial(whole, networks[0], paths, batch))
                ),
                "loop": stepping(
                    networks[1], batch, cast(partial(by_domain, networks[1], paths, batch))
                ),
            }
        )
        yield Row(
            f"64 px, {BATCH} images of 10 domains, {precision}: grouped / domain by domain",
            "at least 3",
            f"{times.ratio('loop', 'grouped')}; {times.median('grouped') * 1e3:.0f} ms a step",
        )


def against_one_batch(setting: Setting, p: Problem) -> Iterator[Row]:
    """Compiled retraining of ten domains on one path against as many images of one domain."""
    paths, batch = p.uniform_paths(), p.batch()
    ours = retrain_module(p, paths)
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

    def step() -> None:
        stepper.step(fast(images_of(images)), images)

    times = setting.turns({"ours": steps_of(ours, batch), "one": step})
    yield Row(
        "64 px: images per second, compiled retraining / one compiled batch of the same FLOPs",
        "at least 0.8",
        str(times.ratio("one", "ours")),
    )


def _in(
    precision: str, p: Problem, forward: Callable[[], dict[str, Tensor]]
) -> Callable[[], dict[str, Tensor]]:
    def cast() -> dict[str, Tensor]:
        with torch.autocast(p.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return forward()

    return cast


def formats(setting: Setting, p: Problem) -> Iterator[Row]:
    """The memory formats that a network may have."""
    batch, paths = p.batch(), shared_paths(p)
    contiguous = p.derived(paths).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    plain = {d: (images.contiguous(), labels) for d, (images, labels) in batch.items()}
    last = p.derived(paths)
    times = setting.turns(
        {
            "contiguous": stepping(contiguous, plain, partial(whole, contiguous, paths, plain)),
            "last": stepping(last, batch, partial(whole, last, paths, batch)),
        }
    )
    yield Row(
        "64 px: a step, contiguous / channels last", "", str(times.ratio("contiguous", "last"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("No GPU was found: these rows are not measured.")
    setting = Setting(options.rounds, device="cuda")
    p = problem("64 px", batch_size=BATCH, device="cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.rounds} rounds\n")
    print("| what | goal | found |\n|---|---|---|")
    parts = (
        check(p),
        grouped(setting, p),
        against_one_batch(setting, p),
        formats(setting, p),
        engine(setting),
        search(setting),
        compiled(setting),
        memory(setting),
    )
    for rows in parts:
        for row in rows:
            print(f"| {row.what} | {row.goal} | {row.found} |", flush=True)


if __name__ == "__main__":
    main()
