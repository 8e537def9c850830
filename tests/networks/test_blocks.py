"""What batch norm of some of a node's domains costs and learns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mdl.networks.blocks import BATCH_NORM_EPS, Company, DomainBatchNorm


class Counting(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls += 1
        return function(*args, **(kwargs or {}))


def norm_of(users: int) -> DomainBatchNorm:
    made = DomainBatchNorm(3, [f"domain{number}" for number in range(users)], running=False)
    torch.nn.init.normal_(made.weight)
    return made


@given(st.integers(1, 6), st.data())
def test_rows_of_a_table_learn_as_parameters_of_their_own(users: int, data: st.DataObject) -> None:
    norm = norm_of(users)
    rows = data.draw(st.permutations(range(users)))[: data.draw(st.integers(1, users))]
    x = torch.randn(4 * len(rows), 3, 2, 2)
    company = Company(tuple(norm.users[row] for row in rows), (4,) * len(rows))
    scales = [norm.weight[row].detach().requires_grad_() for row in rows]
    shifts = [norm.bias[row].detach().requires_grad_() for row in rows]
    expected: list[Tensor] = [
        F.batch_norm(part, None, None, scale, shift, True, 0.0, BATCH_NORM_EPS)
        for part, scale, shift in zip(x.split(4), scales, shifts, strict=True)
    ]
    found, weights = norm(x, company), torch.randn_like(x)
    assert torch.equal(found, torch.cat(expected))
    (found * weights).sum().backward()
    (torch.cat(expected) * weights).sum().backward()
    for table, of in ((norm.weight, scales), (norm.bias, shifts)):
        gradients = torch.zeros_like(table)
        for row, leaf in zip(rows, of, strict=True):
            assert leaf.grad is not None
            gradients[row] = leaf.grad
        torch.testing.assert_close(table.grad, gradients)


@pytest.mark.parametrize("visitors", [1, 2, 3])
def test_domains_that_are_elsewhere_are_computed_nothing_for(visitors: int) -> None:
    def calls(users: int) -> int:
        norm = norm_of(users)
        company = Company(norm.users[:visitors], (4,) * visitors)
        with Counting() as counting:
            norm(torch.randn(4 * visitors, 3, 2, 2), company).sum().backward()
        return counting.calls

    assert calls(5) == calls(50)
