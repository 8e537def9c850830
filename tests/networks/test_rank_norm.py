"""Batch norm over ranks is batch norm of all ranks' images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mdl.networks.blocks import Company, DomainBatchNorm, SharedBatchNorm
from tests.on_ranks import on_two_ranks

KINDS = {"per_domain": DomainBatchNorm, "shared": SharedBatchNorm}
# of each rank, images of each domain: not the same on both
COUNTS = ({"a": 3, "b": 2}, {"a": 1, "b": 4})


def images(rank: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return {
        d: torch.randn(n, 6, 3, 2, generator=generator) * 3 + 5 for d, n in COUNTS[rank].items()
    }


def passed(kind: str, running: bool, given: dict[str, Tensor]) -> dict[str, Any]:
    """Outputs, gradients and running statistics of a pass and a weighted sum's way back."""
    norm = KINDS[kind](6, ["b", "c", "a"], running)
    torch.manual_seed(0)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    for x in given.values():
        x.requires_grad_(True)
    company = Company(tuple(given), tuple(len(x) for x in given.values()))
    y = norm(torch.cat(list(given.values())), company)
    # a function of an image's own output, whoever computes it
    (y.sin() * y).sum().backward()
    return {
        "y": dict(zip(given, y.detach().split(company.counts), strict=True)),
        "x": {d: x.grad for d, x in given.items()},
        "parameters": {name: p.grad for name, p in norm.named_parameters()},
        "running": dict(norm.named_buffers()),
    }


def on_a_rank(rank: int, kind: str, running: bool) -> dict[str, Any]:
    return passed(kind, running, images(rank))


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_two_ranks_compute_what_one_does_of_all_images(
    kind: str, running: bool, tmp_path: Path
) -> None:
    one, two = on_two_ranks(on_a_rank, tmp_path, kind, running)
    first, second = images(0), images(1)
    whole = passed(kind, running, {d: torch.cat([first[d], second[d]]) for d in first})
    for domain in first:
        for what in ("y", "x"):
            joined = torch.cat([one[what][domain], two[what][domain]])
            torch.testing.assert_close(joined, whole[what][domain], rtol=1e-4, atol=1e-5)
    for name, gradient in whole["parameters"].items():
        total = one["parameters"][name] + two["parameters"][name]
        torch.testing.assert_close(total, gradient, rtol=1e-4, atol=1e-4)
    for name, statistic in whole["running"].items():
        torch.testing.assert_close(one["running"][name], statistic, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(two["running"][name], statistic, rtol=1e-4, atol=1e-5)


def test_one_rank_normalises_by_its_own_images(tmp_path: Path) -> None:
    norm = DomainBatchNorm(6, ["a", "b"], running=False)
    given = images(0)
    y = norm(torch.cat(list(given.values())), Company(("a", "b"), (3, 2)))
    for part in y.split((3, 2)):
        torch.testing.assert_close(part.mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
