from __future__ import annotations

import pytest
import torch
from torch import nn

from mdl.training.average import WeightAverage


def test_the_average_follows_the_weights_as_its_decay_says() -> None:
    network, step = nn.BatchNorm1d(1), 0
    average = WeightAverage(network, 0.15, lambda: step)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 5.0, 11.0], 1):
        with torch.no_grad():
            network.weight.fill_(value)
            assert network.running_mean is not None
            network.running_mean.fill_(-value)
        average.update_parameters(network)
        decay = 0.0 if step == 1 else min(0.15, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)
        assert average.module.running_mean.item() == pytest.approx(-expected)
    assert average.n_averaged == 4


def test_the_first_average_is_the_first_steps_weights_to_the_bit_and_a_count_is_a_count() -> None:
    network = nn.BatchNorm1d(3)
    average = WeightAverage(network, 0.99, lambda: 1)
    with torch.no_grad():
        network.weight.copy_(torch.rand(3))
    network.num_batches_tracked += 7
    average.update_parameters(network)
    assert torch.equal(average.module.weight, network.weight)
    assert average.module.num_batches_tracked == 7
    assert not any(parameter.requires_grad for parameter in average.parameters())
