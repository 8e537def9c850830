"""How fast a step is, against the limit, the plain loop, LibMTL and separate trainings.

    python -m benchmarks.speed [--rounds 15] [--only NAME ...] [--libmtl FOLDER] [--table FILE]

All contenders of a row train the same paths on the same batches with the same threads, in one
process, and take turns; printed are medians of ratios of neighbouring turns with their quartiles.
--busy: processor time of one thread in place of time, for a machine that others use too.
LibMTL: `benchmarks/libmtl.py` says how to get it.
"""

from __future__ import annotations

import argparse
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bare import bare
from benchmarks.libmtl import libmtl_training
from benchmarks.paired import Ratio, Times, take_turns
from benchmarks.peak import peak_bytes
from benchmarks.problem import RECIPES, Problem, Stepper, problem
from benchmarks.run_overhead import overhead
from benchmarks.static import StaticNetwork
from mdl.data.transforms import Batch, images_of
from mdl.kept_memory import keep_freed_memory
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable
from mdl.networks.draws import PathUrn
from mdl.networks.multipath import MultiPathNetwork
from mdl.networks.parameters import ParameterTable
from mdl.networks.sizing import SizeTable
from mdl.space.search_space import Path as SpacePath
from mdl.space.search_space import SearchSpace, Stage
from mdl.training.base import MultiDomainModule
from mdl.training.retrain import RetrainModule
from mdl.training.search import SearchModule

Paths = Mapping[str, SpacePath]
TRAINING = {
    "total_steps": 1_000_000,
    "record_interval": 1_000_000,
    "learning_rate": 3e-3,
    "weight_decay": 0.02,
    "warmup_fraction": 0.05,
    "label_smoothing": 0.1,
    "clip_norm": 5.0,
}
REWARD = {"beta": -0.1, "target": 0.75, "baseline_momentum": 0.95}


@dataclass(frozen=True)
class Row:
    """A line of the table. goal: in words, or nothing."""

    what: str
    goal: str
    found: str


@dataclass(frozen=True)
class Setting:
    """How often contenders take turns, by which clock, on which device."""

    rounds: int
    clock: Callable[[], float] = time.perf_counter
    device: str = "cpu"
    libmtl: Path | None = None  # the folder of its unpacked wheel

    def settle(self) -> None:
        """Waits until what was begun is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def turns(self, contenders: Mapping[str, Callable[[], object]]) -> Times:
        warmup = 6 if self.device == "cuda" else 2  # after six every step is a graph's
        return take_turns(contenders, self.rounds, self.clock, self.settle, warmup)


def shared_paths(problem: Problem) -> Paths:
    """Random paths that share as a searched network's do: some 40 % of its nodes' calls."""
    return PathUrn(problem.space, 2.0, random.Random(0)).draw(problem.domains)


def whole(network: MultiPathNetwork, paths: Paths, batch: Batch) -> dict[str, Tensor]:
    return network(images_of(batch), paths)  # type: ignore[no-any-return]


def by_domain(network: MultiPathNetwork, paths: Paths, batch: Batch) -> dict[str, Tensor]:
    return {d: network({d: images}, {d: paths[d]})[d] for d, images in images_of(batch).items()}


def stepping(
    network: torch.nn.Module, batch: Batch, forward: Callable[[], dict[str, Tensor]], **of: bool
) -> Callable[[], None]:
    return partial(_one_step, Stepper(network, **of), batch, forward)


def engine(setting: Setting) -> Iterator[Row]:
    """Weight steps: super-network, derived network, plain loop, static network."""
    for name in ("32 px", "64 px"):
        p = problem(name, device=setting.device)
        batch = p.batch()
        for kind, paths in {
            "a derived network": shared_paths(p),
            "ten random paths": p.random_paths(0),
        }.items():
            derived, loop, super_ = p.derived(paths), p.derived(paths), p.supernet()
            static = StaticNetwork(p.space, paths, p.num_classes, p.batch_size, p.image_size)
            static.to(p.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            times = setting.turns(
                {
                    "grouped": stepping(derived, batch, partial(whole, derived, paths, batch)),
                    "loop": stepping(loop, batch, partial(by_domain, loop, paths, batch)),
                    "static": stepping(static, batch, partial(static, images_of(batch))),
                    "super": stepping(
                        super_, batch, partial(whole, super_, paths, batch), norm_momentum=False
                    ),
                }
            )
            place = f"{name}, {kind}"
            goal = "at least 1.3" if kind.startswith("a derived") else "at least 1.0"
            yield Row(
                f"{place}: super-network's weight step / static step of the same paths",
                "at most 1.05",
                str(times.ratio("super", "static")),
            )
            yield Row(
                f"{place}: images per second, grouped / domain by domain",
                goal,
                str(times.ratio("loop", "grouped")),
            )
            yield Row(
                f"{place}: derived network's step / static step",
                "",
                f"{times.ratio('grouped', 'static')}; {times.median('grouped') * 1e3:.0f} ms",
            )


def search_module(
    p: Problem,
    *,
    warmup: float,
    common: bool = False,
    network: MultiPathNetwork | None = None,
) -> SearchModule:
    sizes = dict.fromkeys(p.domains, p.image_size)
    costs = CostTable(p.space, sizes, p.num_classes)
    parameters = ParameterTable(p.space, p.num_classes, "per_domain")
    made = SearchModule(
        network or p.supernet(),
        Controllers(p.space, p.domains),
        costs,
        SizeTable(parameters, costs, private=False),
        seed=0,
        controller_learning_rate=0.05,
        controller_beta1=0.5,
        warmup_fraction_paths=warmup,
        warmup_common_path=common,
        sharing=0.03,
        **REWARD,
        **TRAINING,
    )
    return made.to(p.device)


def retrain_module(p: Problem, paths: Paths) -> RetrainModule:
    network = p.derived(paths)
    return RetrainModule(network, paths, ema_decay=0.99, cuda_graph=True, **TRAINING).to(p.device)


def steps_of(module: MultiDomainModule, batch: object, count: int = 1) -> Callable[[], None]:
    stepped = bare(module)

    def turn() -> None:
        for _ in range(count):
            stepped.training_step(batch, 0)

    return turn


def search(setting: Setting) -> Iterator[Row]:
    """Whole search steps against weight steps and against retraining."""
    p = problem("32 px", device=setting.device)
    batch = p.batch()
    both = {"train": batch, "held_out": batch}
    twice = {"train": batch, "held_out": p.batch(2 * p.batch_size)}
    times = setting.turns(
        {
            "weights": steps_of(search_module(p, warmup=1.0), both),
            "whole": steps_of(search_module(p, warmup=0.0), both),
            "more held out": steps_of(search_module(p, warmup=0.0), twice),
            "retraining": steps_of(retrain_module(p, shared_paths(p)), batch),
        }
    )
    yield Row(
        "32 px: whole search step / its weight step alone, as many held-out images",
        "at most 1.45",
        str(times.ratio("whole", "weights")),
    )
    yield Row(
        "32 px: the same with twice as many held-out images",
        "",
        str(times.ratio("more held out", "weights")),
    )
    yield Row(
        "32 px: whole search / retraining, time per training image",
        "at most 2",
        str(times.ratio("whole", "retraining")),
    )


def others(setting: Setting) -> Iterator[Row]:
    """LibMTL, and ten separate trainings."""
    p, count = problem("32 px", device=setting.device), 3
    batch, paths = p.batch(), shared_paths(p)
    alone = [
        Problem(p.space, {d: n}, p.image_size, p.batch_size, p.device)
        for d, n in p.num_classes.items()
    ]
    single = [
        steps_of(retrain_module(of, {d: paths[d] for d in of.domains}), of.batch(), count)
        for of in alone
    ]
    contenders: dict[str, Callable[[], object]] = {
        "this": steps_of(retrain_module(p, paths), batch, count),
        "separate": lambda: [step() for step in single],
    }
    if setting.libmtl is not None:
        train = libmtl_training(setting.libmtl, p, p.derived(paths), paths)
        contenders["LibMTL"] = lambda: train(count)
    times = setting.turns(contenders)
    if setting.libmtl is not None:
        yield Row(
            "32 px: images per second in training, this project / LibMTL 1.1.5",
            "at least 1.5",
            str(times.ratio("LibMTL", "this")),
        )
    yield Row(
        "32 px: the same, this project / ten separate trainings of the same paths",
        "",
        str(times.ratio("separate", "this")),
    )


def compiled(setting: Setting) -> Iterator[Row]:
    """The derived network, compiled."""
    p = problem("32 px", device=setting.device)
    batch, paths = p.batch(), shared_paths(p)
    plain, faster = retrain_module(p, paths), retrain_module(p, paths)
    faster.compile_network()
    turn, started = steps_of(faster, batch), time.perf_counter()
    turn()
    seconds = time.perf_counter() - started
    times = setting.turns({"plain": steps_of(plain, batch), "compiled": turn})
    yield Row(
        "32 px: images per second of retraining, compiled / uncompiled",
        "at least 1.2",
        f"{times.ratio('plain', 'compiled')}; compiling took {seconds:.0f} s",
    )


def growth(setting: Setting) -> Iterator[Row]:
    """Weight steps of a super-network as domains, layers and blocks per layer grow."""
    contenders: dict[str, Callable[[], object]] = {}
    numbers = (1, 2, 5, 10, 20, 50)
    for number in numbers:
        p = problem("32 px", number, 200 // number, setting.device)
        contenders[f"{number} domains"] = _super_step(p, p.random_paths(0, common=True))
    times = setting.turns(contenders)
    yield Row(
        "32 px: step on one common path, 200 images of 1, 2, 5, 10, 20, 50 domains / of 10",
        "",
        _series(times.ratio(f"{n} domains", "10 domains") for n in numbers),
    )
    contenders, ten = {}, problem("32 px", device=setting.device)
    depths = (1, 2, 4, 8)
    for depth in depths:
        stage = Stage(32, depth, 2, "hardswish")
        space = SearchSpace(16, 2, (Stage(16, 1, 1, "relu"), stage), 64)
        p = Problem(space, ten.num_classes, 32, 16, ten.device)
        contenders[f"{depth} layers"] = _super_step(p, p.uniform_paths())
    times = setting.turns(contenders)
    yield Row(
        "a stage of 1, 2, 4, 8 layers / of 1",
        "",
        _series(times.ratio(f"{n} layers", "1 layers") for n in depths),
    )
    contenders = {}
    choices: tuple[tuple[int, ...], ...] = ((3,), (3, 5), (3, 5, 7), (3, 5, 7, 9))
    for kernels in choices:
        space = SearchSpace(16, 2, (Stage(32, 4, 2, "hardswish"),), 64, kernels)
        p = Problem(space, ten.num_classes, 32, 16, ten.device)
        contenders[f"{len(kernels)}"] = _super_step(p, p.uniform_paths())
    times = setting.turns(contenders)
    yield Row(
        "the same path in a space of 4, 8, 12, 16 blocks a layer / of 4",
        "",
        _series(times.ratio(f"{len(kernels)}", "1") for kernels in choices),
    )


def _super_step(p: Problem, paths: Paths) -> Callable[[], None]:
    network, batch = p.supernet(), p.batch()
    return stepping(network, batch, partial(whole, network, paths, batch), norm_momentum=False)


def _series(ratios: Iterator[Ratio]) -> str:
    return ", ".join(f"{ratio.median:.2f}" for ratio in ratios)


def memory(setting: Setting) -> Iterator[Row]:
    """Peak memory of a super-network's step against the static network's."""
    for name in ("32 px", "64 px"):
        p = problem(name, device=setting.device)
        batch, paths = p.batch(), p.random_paths(0)
        super_ = p.supernet()
        static = StaticNetwork(p.space, paths, p.num_classes, p.batch_size, p.image_size)
        static.to(p.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        first, limit = Stepper(super_, norm_momentum=False), Stepper(static)
        forward = partial(whole, super_, paths, batch)
        found = peak_bytes(partial(_one_step, first, batch, forward), p.device)
        forward = partial(static, images_of(batch))
        least = peak_bytes(partial(_one_step, limit, batch, forward), p.device)
        states = sum(len(of) > 0 for of in first.optimizer.state.values())
        weights = len(list(super_.parameters()))
        yield Row(
            f"{name}, ten random paths: peak memory of a first step, super-network / static",
            "at most 1.2",
            f"{found / least:.2f}; {found / 2**20:.0f} MiB; optimizer state of {states} of "
            f"{weights} tensors",
        )


def whole_run(setting: Setting) -> Iterator[Row]:
    """What a run adds to its steps."""
    if setting.device == "cuda":  # the miniature's steps are too short there to say anything
        return
    threads = torch.get_num_threads()
    waits, ratio = overhead([*RECIPES["32 px"], "trainer.max_steps=240"])
    torch.set_num_threads(threads)
    yield Row(
        "32 px miniature from disk: waiting for images, of a step", "at most 3 %", f"{waits:.1%}"
    )
    yield Row(
        "32 px miniature: a step with Lightning, loggers, callbacks, checkpoints / a bare step",
        "at most 1.05",
        str(ratio),
    )


def _one_step(stepper: Stepper, batch: Batch, forward: Callable[[], dict[str, Tensor]]) -> None:
    stepper.step(forward(), batch)


PARTS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "engine": engine,
    "search": search,
    "others": others,
    "compiled": compiled,
    "growth": growth,
    "memory": memory,
    "run": whole_run,
}


def describe(options: argparse.Namespace) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.cuda.get_device_name() if options.device == "cuda" else _processor()
    measured = "processor time of one thread" if options.busy else "time"
    return (
        f"{date.today()}, commit {commit}; {device}, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}; {measured}, {options.rounds} "
        "rounds, medians of ratios of neighbouring turns (quartiles)"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--libmtl", type=Path)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--table", type=Path, help="a file that the table is written to as well")
    options = parser.parse_args()
    keep_freed_memory()  # as mdl.fit does; for all contenders
    if options.busy:
        torch.set_num_threads(1)
    clock = time.process_time if options.busy else time.perf_counter
    setting = Setting(options.rounds, clock, options.device, options.libmtl)
    lines = [describe(options), "", "| what | goal | found |", "|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name in options.only:
        for row in PARTS[name](setting):
            lines.append(f"| {row.what} | {row.goal} | {row.found} |")
            print(lines[-1], flush=True)
    if options.table is not None:
        options.table.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
