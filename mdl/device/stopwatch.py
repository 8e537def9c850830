"""How long calls take, side by side on a machine that may have other work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np

_WARM_UP = 5
_CALLS_PER_TURN = 10
_QUANTILE = 0.1  # others' work on the machine only ever adds


def milliseconds(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Lowest tenth of each call's time, ms. The calls take turns: what disturbs one does all."""
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(0, repeats, _CALLS_PER_TURN):
        for name, call in calls.items():
            call()  # brings its weights back into the caches
            for _ in range(_CALLS_PER_TURN):
                begun = perf_counter()
                call()
                times[name].append(perf_counter() - begun)
    return {name: 1e3 * float(np.quantile(of, _QUANTILE)) for name, of in times.items()}
