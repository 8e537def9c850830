"""How many domains' images a call of a node takes at once."""

from __future__ import annotations

from collections.abc import Sequence

# A node's operations hand its features on from one to the next, which on a CPU is faster while they
# stay in its cache. Of 4, 8 and 16 MiB and no limit, 8 was about as good as any at 32 px and the
# best at 64 px (docs/results/speed.md).
CPU_CALL_BYTES = 8 * 2**20


def in_parts(
    members: Sequence[str], sizes: Sequence[int], limit: int | None
) -> list[tuple[str, ...]]:
    """The members in their order, in parts whose sizes add up to the limit, or of one member."""
    parts: list[list[str]] = []
    left = 0
    for member, size in zip(members, sizes, strict=True):
        if not parts or (limit is not None and size > left):
            parts.append([])
            left = limit or 0
        parts[-1].append(member)
        left -= size
    return [tuple(part) for part in parts]
