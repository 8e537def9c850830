"""Batch norm of several domains in one call is what one call for each computes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mdl.networks.blocks import Company, DomainBatchNorm
from mdl.networks.joint_norm import normalise_together


def one_by_one(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    parts = zip(x.chunk(len(weight)), weight, bias, strict=True)
    return torch.cat([F.batch_norm(of, None, None, w, b, True, 0.0, 1e-5) for of, w, b in parts])


@given(
    st.integers(1, 5),
    st.integers(2, 4),
    st.integers(1, 6),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 99),
)
def test_output_and_gradients_are_those_of_each_by_itself(
    domains: int, count: int, channels: int, side: int, last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(domains * count, channels, side, side, dtype=torch.double) * 3 + 1
    x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    weight, bias = (torch.randn(domains, channels, dtype=torch.double) for _ in range(2))
    gradient = torch.randn_like(x)
    leaves = [of.float().requires_grad_() for of in (x, weight, bias)]
    exact = [of.requires_grad_() for of in (x, weight, bias)]
    found = normalise_together(*leaves, 1e-5)[0]
    expected = one_by_one(*exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    for mine, of in zip(
        torch.autograd.grad(found, leaves, gradient.float()),
        torch.autograd.grad(expected, exact, gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), of, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("members", [["a", "b", "c", "d"], ["b", "d", "c"]])
def test_running_statistics_are_those_of_each_by_itself(members: list[str]) -> None:
    apart, together = (DomainBatchNorm(5, ["a", "b", "c", "d"], running=True) for _ in range(2))
    x = torch.randn(len(members) * 3, 5, 2, 2)
    company = Company(tuple(members), (3,) * len(members))
    rows = [apart.users.index(domain) for domain in members]
    affine = together.weight[rows].unbind(), together.bias[rows].unbind()
    torch.testing.assert_close(apart(x, company), together._normalise_together(x, rows, *affine))
    for name, buffer in apart.named_buffers():
        torch.testing.assert_close(together.get_buffer(name), buffer)


def test_half_precision_has_statistics_of_float32() -> None:
    x = (torch.randn(8, 6, 4, 4) + 50).bfloat16()
    weight, bias = torch.ones(2, 6), torch.zeros(2, 6)
    found = normalise_together(x, weight, bias, 1e-5)[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), one_by_one(x.float(), weight, bias), atol=0.02, rtol=0.02
    )
