"""Chains of plain convolutions compute what the trained network does."""

import random

import pytest
import torch
from torch import Tensor, nn

from mdl.device.plain import (
    FOLDED,
    FORMS,
    MIXED,
    SCALED,
    NormalisedImage,
    PlainConv,
    PlainPath,
    PlainPaths,
    plain_paths,
    stored_bytes,
)
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.search_space import Path, SearchSpace

CLASSES = {"birds": 3, "cars": 4, "types": 2}
SIDE = 16
NORMALISED = NormalisedImage((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def draw_paths(space: SearchSpace, seed: int) -> dict[str, Path]:
    """Of two domains the same, so that nodes are shared."""
    generator = random.Random(seed)
    one, other = space.random_path(generator), space.random_path(generator)
    return {"birds": one, "cars": one, "types": other}


def trained(
    space: SearchSpace,
    paths: dict[str, Path],
    batch_norm: str = "per_domain",
    private: bool = False,
) -> MultiPathNetwork:
    """A network in evaluation whose batch norms are far from the identity."""
    users = path_users(space, paths, private)
    network = MultiPathNetwork(space, users, CLASSES, batch_norm=batch_norm)
    for name, tensor in network.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif ".bn" in name and tensor.is_floating_point():
            tensor.normal_(0.2, 0.7)  # scales below zero too
    return network.eval()


def chains(network: MultiPathNetwork, paths: dict[str, Path], form: str) -> dict[str, PlainPath]:
    normalised, sides = dict.fromkeys(paths, NORMALISED), dict.fromkeys(paths, SIDE)
    return plain_paths(network, paths, normalised, sides, form)


def colours(count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE)).float()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
@pytest.mark.parametrize("private", [False, True], ids=["shared nodes", "private nodes"])
def test_a_chain_computes_what_the_network_computes(
    space: SearchSpace, form: str, batch_norm: str, private: bool
) -> None:
    paths = draw_paths(space, 1)
    network, x = trained(space, paths, batch_norm, private), colours()
    with torch.no_grad():
        expected = network({domain: NORMALISED(x) for domain in paths}, paths)
        for domain, chain in chains(network, paths, form).items():
            assert torch.allclose(chain(x), expected[domain], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
def test_one_image_through_all_gives_what_each_path_gives(
    space: SearchSpace, batch_norm: str
) -> None:
    paths = draw_paths(space, 2)
    apart, x = chains(trained(space, paths, batch_norm), paths, MIXED), colours()
    with torch.no_grad():
        for together, chain in zip(PlainPaths(apart)(x), apart.values(), strict=True):
            assert torch.equal(together, chain(x))


def test_each_tensor_of_all_paths_has_one_name(space: SearchSpace) -> None:
    """Exporters keep a tensor for each of its names."""
    paths = draw_paths(space, 4)
    every = PlainPaths(chains(trained(space, paths, "shared"), paths, FOLDED))
    places = [tensor.data_ptr() for tensor in every.state_dict().values()]
    assert len(places) == len(set(places)) > 10


def test_paths_are_told_apart_while_a_graph_is_traced(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing hands modules out as proxies whose ids recur: here all as one."""

    class Proxy:
        step: nn.Module

        def __call__(self, x: Tensor) -> Tensor:
            out: Tensor = self.step(x)
            return out

    proxy = Proxy()

    def handed_out(of: nn.ModuleList, number: int) -> Proxy:
        proxy.step = of._modules[str(number)]  # type: ignore[assignment]
        return proxy

    paths = draw_paths(space, 2)
    apart, x = chains(trained(space, paths), paths, FOLDED), colours()
    together = PlainPaths(apart)
    with torch.no_grad():
        expected = [chain(x) for chain in apart.values()]
        monkeypatch.setattr(nn.ModuleList, "__getitem__", handed_out)
        assert all(map(torch.equal, together(x), expected))


class Counting(nn.Module):
    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step, self.calls = step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.step(x)
        return out


def test_a_common_beginning_is_computed_once_where_batch_norm_is_shared(space: SearchSpace) -> None:
    paths = draw_paths(space, 3)
    for batch_norm, stems in (("shared", 1), ("per_domain", 3)):
        apart = chains(trained(space, paths, batch_norm), paths, FOLDED)
        counted: dict[int, Counting] = {}
        for chain in apart.values():
            stem = chain.steps["stem"]
            chain.steps["stem"] = counted.setdefault(id(stem), Counting(stem))
        PlainPaths(apart)(colours())
        assert [of.calls for of in counted.values()] == [1] * stems


def test_weights_stay_shared_unless_batch_norm_is_folded_into_them(space: SearchSpace) -> None:
    paths = draw_paths(space, 4)
    network = trained(space, paths)
    sizes = {form: stored_bytes(chains(network, paths, form))[0] for form in FORMS}
    assert sizes[SCALED] < sizes[FOLDED]
    assert sizes[MIXED] <= sizes[FOLDED]
    shared = chains(trained(space, paths, "shared"), paths, FOLDED)
    once, apart = stored_bytes(shared)
    assert once < sizes[SCALED] < apart


def test_a_channel_that_batch_norm_switched_off_keeps_its_shift() -> None:
    conv = nn.Conv2d(2, 2, 1, bias=False)
    scale, shift = torch.tensor([0.0, -2.0]), torch.tensor([0.7, -0.3])
    x = torch.randn(1, 2, 4, 4)
    folded, scaled = (
        PlainConv(conv, conv.weight.detach(), scale, shift, None, fold) for fold in (True, False)
    )
    assert torch.allclose(folded(x), scaled(x), atol=1e-5)
