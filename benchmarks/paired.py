"""Contenders that take turns: medians of ratios of neighbouring turns, with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Turn = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Times of one contender over those of another, turn by turn."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, _, high = statistics.quantiles(self.values, n=4)
        return f"{self.median:.2f} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Times:
    """Seconds of each contender's turns, in the order in which they took them."""

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Ratio:
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return Ratio(tuple(a / b for a, b in pairs))


def take_turns(
    contenders: Mapping[str, Turn],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], object] = lambda: None,
    warmup: int = 2,
) -> Times:
    """Seconds of so many turns each, after `warmup` that do not count.

    clock: `time.process_time` where other processes have the machine too and all contenders have
    one thread. settle: waits for the device, before and after each turn.
    Every other round goes backwards, so that no contender always follows the same one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        names = list(contenders)
        for name in names if number % 2 else reversed(names):
            settle()
            started = clock()
            contenders[name]()
            settle()
            if number >= warmup:
                seconds[name].append(clock() - started)
    return Times({name: tuple(found) for name, found in seconds.items()})
