"""How many images each domain gives to a step."""

from __future__ import annotations

from collections.abc import Mapping

from mdl.errors import UserError


def check_sampling(sampling: object) -> None:
    """Raises UserError for what is neither 'balanced', 'proportional' nor a temperature."""
    number = isinstance(sampling, int | float) and not isinstance(sampling, bool)
    if not (sampling in ("balanced", "proportional") or (number and float(str(sampling)) >= 1)):
        raise UserError(
            f"data.sampling is {sampling!r}; expected balanced, proportional, or a temperature "
            "of 1 or more: 1 is proportional, the higher the nearer to balanced."
        )


def batch_sizes(
    images: Mapping[str, int], batch_size: int, sampling: str | float = "balanced"
) -> dict[str, int]:
    """Images of each domain in a step, over all ranks.

    images: domain -> size of its training split. batch_size: mean over the domains.
    sampling: 'balanced': the same of each; 'proportional' to the domains' sizes; or a temperature
    t: proportional to sizes ** (1 / t), which lies between the two.

    Sizes are multiples of a quarter of `batch_size`, at least four: a quarter of 16 can be shared
    by two ranks, of 64 by eight, with two images for each. Together they are what balanced batches
    would be, as near as that allows, and none is below one such part.
    """
    if sampling == "balanced":
        return dict.fromkeys(images, batch_size)
    temperature = 1.0 if sampling == "proportional" else float(sampling)
    part = max(batch_size // 4, 4)
    parts = max(round(batch_size * len(images) / part), len(images))
    wanted = {name: size ** (1 / temperature) for name, size in images.items()}
    given = dict.fromkeys(images, 1)  # parts; the rest goes to whom most is missing
    for _ in range(parts - len(images)):
        # the highest averages method (Sainte-Lague): shares stay as near as whole parts can
        neediest = max(images, key=lambda name: wanted[name] / (2 * given[name] + 1))
        given[neediest] += 1
    return {name: count * part for name, count in given.items()}


def shards_in_window(
    shard_bytes: Mapping[str, list[int]], limit: int, streams: int
) -> dict[str, int | None]:
    """Over how many shards each domain is shuffled at a time, so that a cache holds them.

    None: over all. Each domain is given the least that it needs, and equal parts of the rest of
    the cache; what a small one leaves goes to the others. A window and the next are in use at
    once, for each stream.

    shard_bytes: domain -> size of each of its shards. limit: bytes of the cache.
    streams: that walk over each domain, each in its own order.
    """
    windows: dict[str, int | None] = {}
    whole = {name: sum(sizes) for name, sizes in shard_bytes.items()}
    # of a shard in each of what is in use at once: less cannot be had
    shard = {name: 2 * streams * max(sizes) for name, sizes in shard_bytes.items()}
    least = {name: min(shard[name], whole[name]) for name in whole}
    left = max(limit - sum(least.values()), 0)
    waiting = sorted(whole, key=lambda name: whole[name] - least[name])
    for done, name in enumerate(waiting):
        share = least[name] + left // (len(waiting) - done)
        window = max(share // shard[name], 1)
        fits = whole[name] <= share
        windows[name] = None if fits else window
        left -= (whole[name] if fits else window * shard[name]) - least[name]
    return windows
