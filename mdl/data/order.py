"""The laws of order: which image comes when, and what chance does to it.

Everything here is a pure function of its arguments. Ranks, workers and interruptions do not
appear in them, so they cannot change an order.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stable_key(*words: str | int) -> int:
    """63 bits that depend on the words alone, not on the process or the machine."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def scramble(key: int, numbers: Integers) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each number under `key`: two rounds of SplitMix64 (Steele et al., 2014).

    Own arithmetic rather than numpy's generators, whose streams may change between versions.
    """
    with np.errstate(over="ignore"):
        bits = numbers.astype(np.uint64) * _GOLDEN + np.uint64(key)
        for _ in range(2):
            bits += _GOLDEN
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits ^= bits >> np.uint64(31)
    return bits


def permutation(key: int, size: int) -> Integers:
    """A permutation of range(size), drawn by `key`."""
    return np.argsort(scramble(key, np.arange(size)), kind="stable")


def windowed_permutation(key: int, shards: Integers, window: int) -> Integers:
    """A permutation that has at most `window` shards open at a time.

    shards: of each element, the shard that it lies in. Shards come in an order drawn by `key`,
    `window` by `window`; the elements of a window are shuffled together.
    """
    turn_of_shard = np.argsort(permutation(stable_key(key, "shards"), int(shards.max()) + 1))
    return np.lexsort((scramble(key, np.arange(len(shards))), turn_of_shard[shards] // window))


def uniforms(key: int, numbers: Integers, draws: int) -> npt.NDArray[np.float32]:
    """`draws` uniform numbers in [0, 1) for each of the numbers, [len(numbers), draws]."""
    columns = numbers[:, None] * draws + np.arange(draws)
    bits = scramble(key, columns) >> np.uint64(40)  # 24 bits: exact in float32, below 1
    return bits.astype(np.float32) * np.float32(2**-24)


def held_out(domain: str, size: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Which of a training split's images a search holds out for its rewards, [size].

    A fixed hash: the same for every seed, run and machine. At least one image on either side.
    """
    count = min(max(round(size * fraction), 1), size - 1)
    mask = np.zeros(size, dtype=bool)
    mask[permutation(stable_key("held out", domain), size)[:count]] = True
    return mask
