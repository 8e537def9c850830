"""What compiling each node of a super-network would give a search, and what it costs.

    python -m benchmarks.compiled_nodes [--draws 6] [--device cpu]

Steps on other random paths each, of two equal super-networks that take turns, one with each node
compiled by itself. A node meets another company of domains at nearly every step, and is compiled
for each; so the table tells how many compilations each step still brings, and what a step takes
where paths come a second time, and nothing is left to compile.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch._dynamo.utils import counters

from benchmarks.problem import Problem, Stepper, problem
from mdl.data.transforms import images_of


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--draws", type=int, default=6)
    options.add_argument("--device", default="cpu")
    options.add_argument("--problem", default="32 px, small images")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.cache_size_limit = 10_000
    torch._dynamo.config.accumulated_cache_size_limit = 100_000
    p = problem(chosen.problem, device=chosen.device)
    plain, compiled = p.supernet(), p.supernet()
    for node in compiled.nodes.values():
        node.compile(dynamic=False)
    plainly, with_nodes = Stepper(plain, False), Stepper(compiled, False)
    ratios = []
    for draw in range(chosen.draws):
        before = counters["stats"]["unique_graphs"]
        first = _step(p, with_nodes, draw)
        graphs = counters["stats"]["unique_graphs"] - before
        again, without = [], []
        for _ in range(3):
            again.append(_step(p, with_nodes, draw))
            without.append(_step(p, plainly, draw))
        ratios.append(statistics.median(without) / statistics.median(again))
        print(
            f"paths {draw}: {graphs} compilations, {first:.1f} s; again {min(again):.3f} s; "
            f"uncompiled / compiled {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"uncompiled / compiled once all is compiled, median: {statistics.median(ratios):.2f}")


def _step(p: Problem, stepper: Stepper, draw: int) -> float:
    batch, started = p.batch(), time.perf_counter()
    logits = stepper.network(images_of(batch), p.random_paths(draw))
    stepper.step(logits, batch)
    if p.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
