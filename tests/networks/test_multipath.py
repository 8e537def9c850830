"""Laws of the one network class."""

import random
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mdl.networks.blocks import Company, DepthwiseConv, DomainBatchNorm, domain_key
from mdl.networks.multipath import (
    MultiPathNetwork,
    Node,
    path_nodes,
    path_users,
    supernet_users,
)
from mdl.space.search_space import ZERO, Block, Path, SearchSpace, Stage
from mdl.training.optim import weight_optimizer
from tests.networks.counted import count_parameters

CLASSES = {"birds": 3, "cars": 4, "train": 2}  # 'train' is a name that nn.Module has itself
BATCH_NORMS = ("per_domain", "shared")


def draw_paths(space: SearchSpace, seed: int = 0) -> dict[str, Path]:
    generator = random.Random(seed)
    return {domain: space.random_path(generator) for domain in CLASSES}


def common_paths(space: SearchSpace, seed: int = 0) -> dict[str, Path]:
    path = space.random_path(random.Random(seed))
    return dict.fromkeys(CLASSES, path)


def images(count: int = 4, size: int = 8) -> dict[str, Tensor]:
    return {domain: torch.randn(count, 3, size, size) for domain in CLASSES}


def supernet(space: SearchSpace, **options: object) -> MultiPathNetwork:
    users = supernet_users(space, list(CLASSES))
    return MultiPathNetwork(space, users, CLASSES, **options)  # type: ignore[arg-type]


def derived(space: SearchSpace, paths: Mapping[str, Path], **options: object) -> MultiPathNetwork:
    return MultiPathNetwork(space, path_users(space, paths), CLASSES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_a_subnetwork_equals_the_supernetwork_on_its_paths_bitwise(
    space: SearchSpace, batch_norm: str, seed: int
) -> None:
    paths = draw_paths(space, seed)
    whole = supernet(space, batch_norm=batch_norm, running=False)
    for parameter in whole.parameters():  # away from the identity that norms begin with
        torch.nn.init.normal_(parameter, 1.0, 0.1)
    part = derived(space, paths, batch_norm=batch_norm, running=False)
    part.inherit(whole)
    batch = images()
    for a, b in zip(whole(batch, paths).values(), part(batch, paths).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_domains_that_inherit_a_backbone_compute_its_features(
    space: SearchSpace, batch_norm: str
) -> None:
    """In evaluation, so by its running statistics; and heads only of the domain that it has."""
    paths = common_paths(space)
    one = {"birds": paths["birds"]}
    backbone = MultiPathNetwork(space, path_users(space, one), {"birds": 3}, batch_norm=batch_norm)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    for _ in range(3):
        backbone({"birds": torch.randn(8, 3, 8, 8) + 1}, one)
    network = derived(space, paths, batch_norm=batch_norm).eval()
    before = network.heads["@cars"].weight.clone()
    network.inherit(backbone.eval(), {"cars": "birds", "train": "birds"})
    assert torch.equal(network.heads["@cars"].weight, before)
    x = torch.randn(4, 3, 8, 8)
    expected = backbone({"birds": x}, one)["birds"]
    for domain in CLASSES:
        network.heads[domain_key(domain)] = backbone.heads["@birds"]
        assert torch.equal(network({domain: x}, paths)[domain], expected)


def test_private_copies_with_equal_weights_compute_what_shared_nodes_compute(
    space: SearchSpace,
) -> None:
    paths = common_paths(space)
    shared = derived(space, paths)
    bundle = MultiPathNetwork(space, path_users(space, paths, private=True), CLASSES)
    theirs = dict(shared.named_parameters())
    with torch.no_grad():
        for name, parameter in bundle.named_parameters():
            node, _, owner_and_rest = name.removeprefix("nodes.").partition("@")
            if name.startswith("heads"):
                parameter.copy_(theirs[name])
                continue
            owner, _, rest = owner_and_rest.partition(".")
            plain = theirs[f"nodes.{node}.{rest}"]
            is_table = "bn" in rest
            parameter.copy_(plain[[list(CLASSES).index(owner)]] if is_table else plain)
    batch = images()
    together, apart = shared(batch, paths), bundle(batch, paths)
    for domain in CLASSES:
        assert torch.allclose(together[domain], apart[domain], atol=1e-5)


@pytest.mark.parametrize("paths_of", [draw_paths, common_paths])
def test_grouped_execution_equals_domain_by_domain(space: SearchSpace, paths_of: object) -> None:
    """Outputs, gradients and running statistics, with batch norm per domain."""
    paths = paths_of(space)  # type: ignore[operator]
    grouped, apart = derived(space, paths).double(), derived(space, paths).double()
    apart.load_state_dict(grouped.state_dict())
    batch = {domain: x.double() for domain, x in images().items()}
    sum(out.square().sum() for out in grouped(batch, paths).values()).backward()
    for domain, x in batch.items():
        apart({domain: x}, paths)[domain].square().sum().backward()
    theirs = dict(apart.named_parameters())
    for name, parameter in grouped.named_parameters():
        assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-9), name
    buffers = dict(apart.named_buffers())
    for name, buffer in grouped.named_buffers():
        assert torch.allclose(buffer, buffers[name], atol=1e-12), name


def test_who_skips_a_layer_does_not_take_its_company_along(space: SearchSpace) -> None:
    """Two that part where one skips, and meet again, are two groups until then."""
    visiting = tuple(layer.blocks[0] for layer in space.layers)
    skipping = (visiting[0], ZERO, *visiting[2:])
    assert ZERO in space.layers[1].blocks and ZERO not in visiting
    for birds, cars in ((skipping, visiting), (visiting, skipping)):
        paths = {"birds": birds, "cars": cars}
        network, batch = derived(space, paths).eval(), images()
        batch = {domain: batch[domain] for domain in paths}
        together = network(batch, paths)
        for domain, x in batch.items():
            assert torch.allclose(together[domain], network({domain: x}, paths)[domain], atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 2**12]))
@settings(max_examples=150, deadline=None)
def test_any_paths_together_are_each_by_itself(seed: int, call_bytes: int | None) -> None:
    draw = random.Random(seed)
    stages = (Stage(4, 3, 1, "relu"), Stage(6, 3, 2, "relu"))
    space = SearchSpace(4, 1, stages, 6, (3,))
    domains = [f"d{number}" for number in range(5)]
    # few different paths, most of whose layers are skipped: domains part and meet often
    few = [space.random_path(draw) for _ in range(2)]
    paths = {domain: _partly_skipped(space, draw.choice(few), draw) for domain in domains}
    torch.manual_seed(seed % 2**31)
    users = path_users(space, paths)
    network = MultiPathNetwork(space, users, dict.fromkeys(domains, 3)).double()
    for head in network.heads.values():
        torch.nn.init.normal_(head.weight)
    batch = {domain: torch.randn(2, 3, 4, 4).double() for domain in domains}
    network.eval()
    route = network.route({d: x.shape for d, x in batch.items()}, paths, call_bytes)
    together = network.follow(batch, route)
    for domain, x in batch.items():
        alone = network({domain: x}, paths)[domain]
        assert torch.allclose(together[domain], alone, atol=1e-9)


def _partly_skipped(space: SearchSpace, path: Path, draw: random.Random) -> Path:
    return tuple(
        ZERO if ZERO in layer.blocks and draw.random() < 0.5 else block
        for layer, block in zip(space.layers, path, strict=True)
    )


def test_domains_of_different_sizes_go_through_one_network(space: SearchSpace) -> None:
    paths = common_paths(space)
    network = derived(space, paths).eval()
    batch = {
        "birds": torch.randn(4, 3, 8, 8),
        "cars": torch.randn(4, 3, 16, 16),
        "train": torch.randn(2, 3, 8, 8),
    }
    together = network(batch, paths)
    for domain, x in batch.items():
        alone = network({domain: x}, paths)[domain]
        assert together[domain].shape == (len(x), CLASSES[domain])
        assert torch.allclose(together[domain], alone, atol=1e-5)


def test_a_domains_output_does_not_depend_on_its_company(space: SearchSpace) -> None:
    paths = common_paths(space)
    network, batch = derived(space, paths), images()
    before = network(batch, paths)["cars"]
    others = batch | {"birds": 5 * batch["birds"] + 3}
    assert torch.allclose(network(others, paths)["cars"], before, atol=1e-5)


def test_with_shared_batch_norm_it_does(space: SearchSpace) -> None:
    paths = common_paths(space)
    network, batch = derived(space, paths, batch_norm="shared"), images()
    before = network(batch, paths)["cars"]
    others = batch | {"birds": 5 * batch["birds"] + 3}
    assert not torch.allclose(network(others, paths)["cars"], before, atol=1e-2)


def test_only_the_sampled_nodes_get_gradients(space: SearchSpace) -> None:
    paths = draw_paths(space)
    network = supernet(space, running=False)
    sum(out.sum() for out in network(images(), paths).values()).backward()
    visited = {n.key: d for d, p in paths.items() for n in path_nodes(space, p)}
    for key, node in network.nodes.items():
        for name, parameter in node.named_parameters():
            assert (parameter.grad is not None) == (key in visited), name


def test_an_idle_domains_batch_norm_stays_as_it_is(space: SearchSpace) -> None:
    """Also by what the optimizer remembers of the steps before."""
    block, other = space.layers[0].blocks[:2]
    rest = tuple(layer.blocks[0] for layer in space.layers[1:])
    everyone = dict.fromkeys(CLASSES, (block, *rest))
    without = everyone | {"train": (other, *rest)}
    network = supernet(space, running=False)
    optimizer = weight_optimizer(network, 0.01, 0.1, norm_momentum=False)
    norm = network.nodes[Node(0, block).key].bn1
    for paths in (everyone, everyone, without):
        before = norm.weight.detach().clone()
        optimizer.zero_grad()
        sum(out.square().sum() for out in network(images(), paths).values()).backward()
        optimizer.step()
        moved = (norm.weight != before).any(1)
    assert moved.tolist() == [True, True, False]


def test_every_parameter_of_a_derived_network_is_used(space: SearchSpace) -> None:
    paths = draw_paths(space, 3)
    network = derived(space, paths)
    sum(out.sum() for out in network(images(), paths).values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_shared_nodes_are_counted_once(space: SearchSpace) -> None:
    common = common_paths(space)
    one_path = {"birds": common["birds"]}
    one = MultiPathNetwork(space, path_users(space, one_path), {"birds": 3})
    shared = derived(space, common)
    bundle = MultiPathNetwork(space, path_users(space, common, private=True), CLASSES)
    assert count_parameters(shared).convolutions == count_parameters(one).convolutions
    assert count_parameters(bundle).convolutions == 3 * count_parameters(one).convolutions
    assert count_parameters(shared).norm == 3 * count_parameters(one).norm
    assert set(shared.users.values()) == {tuple(CLASSES)}
    names = [name for name, _ in shared.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))


def test_a_skipped_layer_computes_nothing(space: SearchSpace) -> None:
    skippable = [layer.index for layer in space.layers if layer.can_skip]
    full = tuple(layer.blocks[0] for layer in space.layers)
    short = tuple(ZERO if i in skippable else block for i, block in enumerate(full))
    network = supernet(space)
    called: list[str] = []
    for key, node in network.nodes.items():
        node.register_forward_hook(lambda *_, key=key: called.append(key))
    network(images(), dict.fromkeys(CLASSES, short))
    assert called == [node.key for node in path_nodes(space, short)]


def test_a_node_is_called_once_for_all_its_domains(space: SearchSpace) -> None:
    network = supernet(space)
    called: list[str] = []
    for key, node in network.nodes.items():
        node.register_forward_hook(lambda *_, key=key: called.append(key))
    network(images(), draw_paths(space))
    assert len(called) == len(set(called))


def test_a_call_takes_no_more_at_once_than_it_may(space: SearchSpace) -> None:
    """Of the widest features that a node makes, unless one domain's alone are more."""
    network, batch = derived(space, common_paths(space)), images()
    shapes = {domain: x.shape for domain, x in batch.items()}
    widest: dict[str, int] = {}
    for key, node in network.nodes.items():
        for conv in [m for m in node.modules() if isinstance(m, torch.nn.Conv2d)]:
            conv.register_forward_hook(
                lambda _, inputs, out, key=key: widest.update(
                    {key: max(widest.get(key, 0), inputs[0].nbytes, out.nbytes)}
                )
            )
    whole = network.follow(batch, network.route(shapes, common_paths(space)))
    limit = max(widest.values()) // 2
    seen = widest.copy()
    widest.clear()
    route = network.route(shapes, common_paths(space), limit)
    parts = network.follow(batch, route)
    assert len(route) > len(network.route(shapes, common_paths(space)))
    alone = {key for key, members in route if len(members) == 1}
    assert all(size <= limit or key in alone for key, size in widest.items())
    assert all(key in alone or widest[key] == seen[key] for key in seen if seen[key] <= limit)
    for domain, logits in whole.items():
        torch.testing.assert_close(parts[domain], logits)
    shared = derived(space, common_paths(space), batch_norm="shared")
    assert len(shared.route(shapes, common_paths(space), limit)) == len(network.nodes)


def test_evaluation_uses_the_running_statistics_of_the_domain(space: SearchSpace) -> None:
    paths = common_paths(space)
    network = derived(space, paths)
    for _ in range(60):
        network({d: x + i for i, (d, x) in enumerate(images(16).items())}, paths)
    trained = network({d: x + i for i, (d, x) in enumerate(images(64).items())}, paths)
    network.eval()
    batch = {d: x + i for i, (d, x) in enumerate(images(64).items())}
    for domain, out in network(batch, paths).items():
        assert (out.mean() - trained[domain].mean()).abs() < 0.1
        alone = network({domain: batch[domain][:1]}, paths)[domain]
        assert torch.allclose(alone, out[:1], atol=1e-4)


def test_a_domain_batch_norm_equals_one_batch_norm_per_domain() -> None:
    norm = DomainBatchNorm(5, ("a", "b"), running=True)
    singles = {d: torch.nn.BatchNorm2d(5) for d in "ab"}
    x = {"a": torch.randn(4, 5, 3, 3) * 2, "b": torch.randn(6, 5, 3, 3) + 1}
    parts = norm(torch.cat(list(x.values())), Company(("a", "b"), (4, 6))).split((4, 6))
    for row, domain in enumerate("ab"):
        assert torch.allclose(parts[row], singles[domain](x[domain]), atol=1e-6)
        for name in ("running_mean", "running_var"):
            ours, theirs = getattr(norm, name)[row], getattr(singles[domain], name)
            assert torch.allclose(ours, theirs, atol=1e-6)
    norm(x["b"] + 7, Company(("b",), (6,)))  # a subset of the users updates its own rows alone
    assert torch.allclose(norm.running_mean[0], singles["a"].running_mean, atol=1e-6)
    assert not torch.allclose(norm.running_mean[1], singles["b"].running_mean, atol=1e-3)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_depthwise_convolution_is_one_with_padding_on_any_size(
    kernel: int, side: int, stride: int
) -> None:
    conv = DepthwiseConv(6, kernel, stride).double()
    plain = torch.nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(3, 6, side, side).double()
    for module in (conv, plain):
        module(x).square().sum().backward()
    assert torch.allclose(conv(x), plain(x))
    assert torch.allclose(conv.weight.grad, plain.weight.grad)
    with torch.no_grad():
        assert torch.allclose(conv(x), plain(x))


def test_block_names_read_as_their_choices() -> None:
    assert str(Block(5, 6, True)) == "k5_e6_se"
    assert Node(3, Block(5, 6, True), "dtd").key == "layer3_k5_e6_se@dtd"


@pytest.fixture
def varied() -> SearchSpace:
    """Blocks that differ in all that a block can differ in."""
    stages = (Stage(8, 2, 2, "relu"), Stage(16, 2, 2, "hardswish"))
    return SearchSpace(8, 1, stages, 24, kernels=(3, 5), expansions=(3, 6))


def tied_supernet(space: SearchSpace, batch_norm: str = "per_domain") -> MultiPathNetwork:
    return supernet(space, batch_norm=batch_norm, running=False, tied=True)


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_the_largest_block_of_a_tied_layer_is_a_block_of_its_own(
    varied: SearchSpace, batch_norm: str
) -> None:
    tied = tied_supernet(varied, batch_norm)
    paths = dict.fromkeys(CLASSES, varied.uniform_path(varied.largest_block))
    own = derived(varied, paths, batch_norm=batch_norm, running=False)
    state = {name.replace("largest.", "nodes."): value for name, value in tied.state_dict().items()}
    own.load_state_dict(state)
    batch = images()
    for a, b in zip(tied(batch, paths).values(), own(batch, paths).values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
@pytest.mark.parametrize("block", [Block(3, 3, True), Block(5, 3, False), Block(3, 6, False)])
def test_a_tied_block_is_the_first_channels_and_the_centre_of_the_largest(
    varied: SearchSpace, batch_norm: str, block: Block
) -> None:
    tied = tied_supernet(varied, batch_norm)
    for parameter in tied.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    paths = dict.fromkeys(CLASSES, varied.uniform_path(block))
    own = derived(varied, paths, batch_norm=batch_norm, running=False)
    largest = str(varied.largest_block)
    theirs = tied.state_dict()
    for name, parameter in own.state_dict().items():
        full = theirs[
            name.replace(f"_{block}.", f"_{largest}.").replace("nodes.layer", "largest.layer")
        ]
        for dimension, length in enumerate(parameter.shape):
            # kernels are cut around their centre, channels from the first on
            margin = (
                (full.shape[dimension] - length) // 2 if "conv_dw" in name and dimension > 1 else 0
            )
            full = full.narrow(dimension, margin, length)
        parameter.copy_(full)
    batch = images()
    for a, b in zip(tied(batch, paths).values(), own(batch, paths).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_tied_weights_are_held_once_and_every_block_trains_them(varied: SearchSpace) -> None:
    tied = tied_supernet(varied)
    largest = dict.fromkeys(CLASSES, varied.uniform_path(varied.largest_block))
    own = derived(varied, largest, running=False)
    assert count_parameters(tied).convolutions == count_parameters(own).convolutions
    smallest = varied.uniform_path(Block(3, 3, False))
    logits = tied(images(), dict.fromkeys(CLASSES, smallest))
    torch.stack([of.sum() for of in logits.values()]).sum().backward()
    weight = tied.largest[Node(0, varied.largest_block).key].conv_pw.weight
    assert weight.grad is not None
    half = len(weight) // 2
    assert weight.grad[:half].any()
    assert not weight.grad[half:].any()


def test_a_tied_private_network_shares_nothing_between_domains(varied: SearchSpace) -> None:
    users = supernet_users(varied, list(CLASSES), private=True)
    bundle = MultiPathNetwork(varied, users, CLASSES, running=False, tied=True)
    logits = bundle(images(), common_paths(varied))
    logits["birds"].sum().backward()
    trained = {name for name, p in bundle.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all("@birds" in name for name in trained)
