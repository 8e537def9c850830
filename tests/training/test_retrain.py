"""Laws of the retraining."""

import math
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from mdl.errors import UserError
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.search_space import SearchSpace
from mdl.training.accuracy import DomainAccuracy
from mdl.training.optim import warmup_cosine, weight_optimizer
from mdl.training.retrain import RetrainModule
from tests.networks.counted import count_parameters
from tests.training.test_search import CLASSES, Endless, batch, changed, state, trainer

SETTINGS = {
    "total_steps": 10,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_fraction": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": 1.0,
    "record_interval": 5,
    "ema_decay": 0.9,
}


def module(space: SearchSpace, **changes: object) -> RetrainModule:
    generator = random.Random(0)
    paths = {domain: space.random_path(generator) for domain in CLASSES}
    network = MultiPathNetwork(space, path_users(space, paths), CLASSES)
    return RetrainModule(network, paths, **(SETTINGS | changes))  # type: ignore[arg-type]


class Batches(Endless):
    def __next__(self):  # type: ignore[no-untyped-def, override]
        return batch()


def test_every_parameter_has_a_gradient_in_each_step(space: SearchSpace) -> None:
    retrain = module(space)
    logits = retrain.network({d: x for d, (x, _) in batch().items()}, retrain.paths)
    sum(out.sum() for out in logits.values()).backward()
    assert all(p.grad is not None for p in retrain.network.parameters())
    assert not any(p.requires_grad for p in retrain.average.parameters())


def test_one_batch_is_one_step(space: SearchSpace, tmp_path: Path) -> None:
    retrain, fit = module(space), trainer(tmp_path, 4)
    fit.fit(retrain, Batches())
    assert fit.global_step == 4
    assert retrain.average.n_averaged == 4


@pytest.mark.parametrize("batch_norm", ["per_domain", "shared"])
def test_a_frozen_backbone_does_not_move_and_its_heads_do(
    space: SearchSpace, tmp_path: Path, batch_norm: str
) -> None:
    path = space.random_path(random.Random(0))
    paths = dict.fromkeys(CLASSES, path)
    network = MultiPathNetwork(space, path_users(space, paths), CLASSES, batch_norm=batch_norm)
    frozen = RetrainModule(network, paths, frozen=True, **SETTINGS)  # type: ignore[arg-type]
    before = state(network)
    trainer(tmp_path, 4).fit(frozen.train(), Batches())
    for part in (network, frozen.average.module):
        assert changed(part, before) == {name for name in before if name.startswith("heads")}


def test_a_frozen_backbone_costs_no_gradient_and_no_optimizer_state(space: SearchSpace) -> None:
    frozen = module(space, frozen=True)
    seen: list[bool] = []
    for node in frozen.network.nodes.values():
        node.register_forward_hook(lambda _, __, features: seen.append(features.requires_grad))
    logits = frozen.network({d: x for d, (x, _) in batch().items()}, frozen.paths)
    assert seen and not any(seen)
    assert all(out.requires_grad for out in logits.values())
    optimizer = frozen.configure_optimizers()["optimizer"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in frozen.network.heads.parameters()}


def test_what_a_retraining_inherits_is_what_it_evaluates(space: SearchSpace) -> None:
    one, other = module(space), module(space)
    for parameter in one.network.parameters():
        torch.nn.init.normal_(parameter)
    other.inherit(one.network, {})
    for network in (other.network, other.average.module):
        assert not changed(network, state(one.network))


def test_the_objective_is_the_weighted_sum_of_the_domains_losses(space: SearchSpace) -> None:
    retrain, given = module(space), batch()
    retrain.domain_weights.copy_(torch.tensor([0.5, 1.5]))
    logits = retrain.network({d: x for d, (x, _) in given.items()}, retrain.paths)
    objective = retrain.weighted_sum(retrain.losses(logits, given))
    assert objective.item() == pytest.approx(
        (0.5 * retrain.domain_losses[0] + 1.5 * retrain.domain_losses[1]).item(), rel=1e-5
    )
    birds = torch.nn.functional.cross_entropy(logits["birds"], given["birds"][1])
    assert retrain.domain_losses[0].item() == pytest.approx(birds.item(), rel=1e-4)


def test_a_loss_that_is_not_finite_is_told_by_domain_and_step(
    space: SearchSpace, tmp_path: Path
) -> None:
    retrain = module(space)
    retrain.weighted_sum(torch.tensor([1.0, 2.0]))
    retrain.note_faults(torch.tensor(1.0))
    retrain.check_finite()
    retrain.weighted_sum(torch.tensor([1.0, math.nan]))
    retrain.note_faults(torch.tensor(1.0))
    retrain.weighted_sum(torch.tensor([math.inf, 2.0]))
    retrain.note_faults(torch.tensor(1.0))
    with pytest.raises(UserError, match="loss of domain 'birds' was not finite at step 0"):
        retrain.check_finite()


def test_the_schedule_rises_linearly_and_falls_as_a_cosine(space: SearchSpace) -> None:
    optimizer = weight_optimizer(torch.nn.Linear(2, 2), 1.0, 0.0)
    schedule = warmup_cosine(optimizer, 4, 12)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert schedule.get_last_lr()[0] == pytest.approx(0)


def test_norms_and_biases_do_not_decay(space: SearchSpace) -> None:
    network = module(space).network
    decayed, biases, norms = weight_optimizer(network, 0.1, 0.05).param_groups
    assert [group["weight_decay"] for group in (decayed, biases, norms)] == [0.05, 0, 0]
    assert {p.ndim for p in biases["params"]} == {1}
    assert sum(p.numel() for p in norms["params"]) == count_parameters(network).norm
    counts = [len(group["params"]) for group in (decayed, biases, norms)]
    assert sum(counts) == len(list(network.parameters()))


def test_accuracy_counts_each_labelled_image_once_in_any_batches() -> None:
    logits = {d: torch.randn(11, n) for d, n in CLASSES.items()}
    labels = {d: torch.randint(-1, n, (11,)) for d, n in CLASSES.items()}
    whole, parts = DomainAccuracy(list(CLASSES)), DomainAccuracy(list(CLASSES))
    whole.update(logits, labels)
    for window in (slice(0, 4), slice(4, 11)):
        parts.update(
            {d: x[window] for d, x in logits.items()}, {d: x[window] for d, x in labels.items()}
        )
    for name, values in whole.compute().items():
        assert torch.allclose(values, parts.compute()[name])
    known = labels["cars"] >= 0
    expected = (logits["cars"].argmax(1) == labels["cars"])[known].float().mean()
    assert whole.compute()["accuracy"][1] == expected


def test_a_compiled_network_trains_as_the_plain_one_and_is_compiled_once(
    space: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all of it but the writing of machine code, which takes a minute
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = module(space), module(space)
    compiled.network.load_state_dict(plain.network.state_dict())
    compiled.compile_network()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for trained in (plain, compiled):
        torch.manual_seed(0)  # of the images
        trainer(tmp_path, 4).fit(trained, Batches())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(
            compiled.network.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name
        )


def test_a_compiled_network_with_one_batch_norm_for_all_domains_has_the_plain_one_s_gradients(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = partial(torch.compile, backend="aot_eager_decomp_partition")
    monkeypatch.setattr(torch, "compile", compiler)
    plain, compiled = module(space), module(space)
    compiled.network.load_state_dict(plain.network.state_dict())
    compiled.compile_network()
    images = {domain: x for domain, (x, _) in batch().items()}
    found = {}
    for fewest, trained in ((4, plain), (2, compiled)):
        monkeypatch.setattr("mdl.networks.blocks.FEWEST_DOMAINS", fewest)
        logits = trained.network(images, trained.paths)
        sum(out.square().sum() for out in logits.values()).backward()
        found[fewest] = {n: p.grad for n, p in trained.network.named_parameters()}
    for name, gradient in found[4].items():
        greatest = float(gradient.abs().max())
        torch.testing.assert_close(
            found[2][name], gradient, rtol=1e-3, atol=1e-3 * greatest + 1e-4, msg=name
        )
    for name, buffer in plain.network.named_buffers():
        torch.testing.assert_close(compiled.network.get_buffer(name), buffer, msg=name)
