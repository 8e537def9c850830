from pathlib import Path

import torch
from torch import Tensor, nn

from mdl.training.ranks import (
    check_equal_over_ranks,
    mean_gradients_over_ranks,
    mean_over_ranks,
)
from tests.on_ranks import on_two_ranks


def gradients(rank: int) -> list[Tensor | None]:
    layers = [nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.Linear(2, 2)]
    parameters = [p for layer in layers for p in layer.parameters()]
    for at, parameter in enumerate(parameters[:-1]):  # the last has none on any rank
        parameter.grad = torch.full_like(parameter, float(at + rank))
    mean_gradients_over_ranks(parameters)
    return [parameter.grad for parameter in parameters]


def test_gradients_become_their_means_and_what_has_none_keeps_none(tmp_path: Path) -> None:
    for found in on_two_ranks(gradients, tmp_path):
        *means, none = found
        assert none is None
        for at, gradient in enumerate(means):
            assert (gradient == at + 0.5).all()


def test_one_rank_keeps_what_it_has() -> None:
    values = torch.rand(3)
    assert mean_over_ranks(values) is values


def told(rank: int, difference: float) -> str:
    held = {"same": torch.arange(3.0), "weight": torch.tensor([1.0, 1.0 + rank * difference])}
    try:
        check_equal_over_ranks(held, 7)
    except RuntimeError as error:
        return str(error)
    return ""


def test_ranks_that_differ_in_one_bit_are_told_on_every_rank(tmp_path: Path) -> None:
    for message in on_two_ranks(told, tmp_path, 2.0**-22):
        assert "step 7 rank 1" in message and "first weight" in message


def test_equal_ranks_pass(tmp_path: Path) -> None:
    assert on_two_ranks(told, tmp_path, 0.0) == ["", ""]
