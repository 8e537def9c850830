"""Laws of the search."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from mdl.data.transforms import Batch
from mdl.networks.controller import Controllers
from mdl.networks.cost import CostTable
from mdl.networks.multipath import MultiPathNetwork, Node, supernet_users
from mdl.networks.parameters import ParameterTable
from mdl.networks.sizing import SizeTable, Target
from mdl.space.search_space import Block, SearchSpace, Stage
from mdl.training.reward import Baseline, absolute_reward, leave_one_out
from mdl.training.search import SearchModule

CLASSES = {"birds": 3, "cars": 4}
SETTINGS = {
    "seed": 0,
    "controller_learning_rate": 0.05,
    "controller_beta1": 0.5,
    "warmup_fraction_paths": 0.0,
    "warmup_common_path": True,
    "beta": -0.1,
    "target": 1.0,
    "baseline_momentum": 0.95,
    "sharing": 0.0,
    "total_steps": 10,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_fraction": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": None,
    "record_interval": 5,
}


def module(
    space: SearchSpace, classes: dict[str, int] = CLASSES, **changes: object
) -> SearchModule:
    network = MultiPathNetwork(space, supernet_users(space, list(classes)), classes, running=False)
    controllers = Controllers(space, list(classes))
    cost = CostTable(space, 8, classes)
    sizes = SizeTable(ParameterTable(space, classes, "per_domain"), cost, private=False)
    return SearchModule(network, controllers, cost, sizes, **(SETTINGS | changes))  # type: ignore[arg-type]


def batch(count: int = 4) -> Batch:
    return {
        d: (torch.randn(count, 3, 8, 8), torch.randint(0, n, (count,))) for d, n in CLASSES.items()
    }


class Endless:
    """The same batch again and again."""

    def __iter__(self) -> "Endless":
        return self

    def __next__(self) -> dict[str, Batch]:
        return {"train": batch(), "held_out": batch()}


def trainer(tmp_path: Path, steps: int) -> L.Trainer:
    return L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


def state(part: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in part.state_dict().items()}


def changed(part: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name for name, value in part.state_dict().items() if not torch.equal(value, before[name])
    }


def test_one_batch_is_one_step(space: SearchSpace, tmp_path: Path) -> None:
    search = module(space)
    steps: list[int] = []
    search.on_train_batch_end = lambda *_: steps.append(search.global_step)  # type: ignore[method-assign]
    trainer(tmp_path, 5).fit(search, Endless())
    assert steps == [1, 2, 3, 4, 5]


def test_a_weight_step_leaves_controllers_untouched_and_moves_only_sampled_nodes(
    space: SearchSpace, tmp_path: Path
) -> None:
    search = module(space, warmup_fraction_paths=0.5)
    fit = trainer(tmp_path, 1)
    controllers, weights = state(search.controllers), state(search.network)
    fit.fit(search, Endless())  # a step of the warm-up is a weight step alone
    assert not changed(search.controllers, controllers)
    paths = search.controllers.paths(search.draw(0)[0])
    sampled = {Node(i, block).key for path in paths.values() for i, block in enumerate(path)}
    moved = {name.split(".")[1] for name in changed(search.network, weights)}
    assert moved <= sampled | {"stem", "head", "@birds", "@cars"}
    assert "stem" in moved


def test_a_controller_step_leaves_weights_untouched(space: SearchSpace) -> None:
    search = module(space)
    weights, controllers = state(search.network), state(search.controllers)
    for step in range(3):
        search.controller_step(batch(), search.draw(step))
    assert not changed(search.network, weights)
    assert changed(search.controllers, controllers) == {"logits"}
    assert all(parameter.grad is None for parameter in search.network.parameters())


def test_controllers_rest_during_the_warm_up_and_its_paths_are_common(
    space: SearchSpace, tmp_path: Path
) -> None:
    search = module(space, warmup_fraction_paths=0.4)
    birds, cars = search.draw(3)[0]
    assert torch.equal(birds, cars)
    before = state(search.controllers)
    trainer(tmp_path, 4).fit(search, Endless())
    assert not changed(search.controllers, before)
    assert not torch.equal(*search.draw(5)[0])


def test_the_reward_is_accuracy_less_what_the_path_costs_beyond_its_target() -> None:
    accuracy, target = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([10.0, 10.0, 10.0])
    macs = torch.tensor([10.0, 15.0, 5.0])
    rewards = absolute_reward(accuracy, macs, target, beta=-0.1)
    assert rewards.tolist() == pytest.approx([0.5, 0.45, 0.45])


def test_the_cost_of_drawn_paths_is_that_of_the_table(space: SearchSpace) -> None:
    search, table = module(space), CostTable(space, 8, CLASSES)
    choices = search.draw(7)[0]
    for domain, macs in zip(CLASSES, search.path_macs(choices).tolist(), strict=True):
        assert macs == table.path_macs(search.controllers.paths(choices)[domain], domain)


def test_the_baseline_is_an_average_without_bias() -> None:
    baseline = Baseline(2, momentum=0.9)
    constant = torch.tensor([0.3, 0.8])
    for _ in range(4):
        assert torch.allclose(baseline.advantage(constant), torch.zeros(2), atol=1e-6)
    weights = torch.tensor([0.9**2, 0.9, 1.0])
    rewards = torch.rand(3, 1)
    other = Baseline(1, momentum=0.9)
    for reward in rewards:
        advantage = other.advantage(reward)
    expected = rewards[-1] - (weights[:, None] * rewards).sum(0) / weights.sum()
    assert torch.allclose(advantage, expected, atol=1e-6)


class Planted(nn.Module):
    """Answers right only where a layer takes the planted block: best by construction."""

    def __init__(self, search: SearchModule, planted: dict[str, list[int]]) -> None:
        super().__init__()
        self.search, self.planted = search, planted

    def forward(self, images: dict[str, torch.Tensor], paths: dict) -> dict[str, torch.Tensor]:  # type: ignore[type-arg]
        logits = {}
        for domain, x in images.items():
            taken = [
                layer.blocks.index(block)
                for layer, block in zip(
                    self.search.controllers.space.layers, paths[domain], strict=True
                )
            ]
            wanted = self.planted[domain]
            share = sum(a == b for a, b in zip(taken, wanted, strict=True)) / len(wanted)
            right = torch.rand(len(x)) < 0.2 + 0.6 * share
            logits[domain] = nn.functional.one_hot((~right).long(), CLASSES[domain]).float()
        return logits


def test_controllers_find_the_planted_blocks_and_their_entropy_falls(space: SearchSpace) -> None:
    search = module(space, beta=0.0)
    planted = {"birds": [0, 1, 2, 3], "cars": [3, 0, 1, 2]}
    search.network = Planted(search, planted)  # type: ignore[assignment]
    held_out = {d: (torch.zeros(32, 3, 8, 8), torch.zeros(32).long()) for d in CLASSES}
    before = search.controllers.entropy()
    for step in range(400):
        choices = search.draw(step)
        search.controller_step(held_out, choices)
    found = search.controllers.log_probabilities().argmax(-1)
    assert found.tolist() == list(planted.values())
    assert (search.controllers.entropy() < 0.6 * before).all()


def test_in_a_trained_supernetwork_controllers_find_the_block_that_sees(tmp_path: Path) -> None:
    """The whole alternation: of two blocks, one is cut off from its input by construction."""
    space = SearchSpace(8, 1, (Stage(8, 1, 2, "relu"),), 16, (3, 5), (2,), (False,))
    classes = {"birds": 2}
    search = module(
        space,
        classes,
        beta=0.0,
        total_steps=150,
        learning_rate=1e-2,
        controller_learning_rate=0.1,
        warmup_fraction_paths=0.2,
    )
    blind = search.network.nodes[Node(0, Block(3, 2, False)).key]
    nn.init.zeros_(blind.conv_pw.weight)
    blind.conv_pw.weight.requires_grad_(False)

    class Stripes(Endless):
        def __next__(self) -> dict[str, Batch]:  # type: ignore[override]
            def one() -> Batch:
                labels = torch.randint(0, 2, (16,))
                across = torch.tensor([1.0, -1.0]).repeat(4)
                x = torch.where(labels[:, None, None] == 0, across, across[:, None])
                return {"birds": (x[:, None] + 0.3 * torch.randn(16, 3, 8, 8), labels)}

            return {"train": one(), "held_out": one()}

    trainer(tmp_path, 150).fit(search, Stripes())
    assert search.controllers.best_paths()["birds"] == (Block(5, 2, False),)
    assert search.controllers.entropy().item() < 0.4


def test_the_advantage_of_several_paths_is_over_the_mean_of_the_others() -> None:
    reward = torch.rand(4, 3)
    advantage = leave_one_out(reward)
    for path in range(4):
        others = torch.cat([reward[:path], reward[path + 1 :]]).mean(0)
        assert torch.allclose(advantage[path], reward[path] - others, atol=1e-6)
    # what is common to all paths, as the difficulty of the images is, changes nothing
    assert torch.allclose(leave_one_out(reward + torch.rand(3)), advantage, atol=1e-6)


def test_the_objective_of_several_paths_is_the_mean_of_each(space: SearchSpace) -> None:
    search = module(space)
    drawn, advantage = search.draw(0).repeat(3, 1, 1), torch.rand(3, len(CLASSES))
    alone = [search.controller_objective(drawn[i : i + 1], advantage[i : i + 1]) for i in range(3)]
    together = search.controller_objective(drawn, advantage)
    assert together.item() == pytest.approx(sum(of.item() for of in alone) / 3, rel=1e-5)


@pytest.mark.parametrize("part", [0.75, 1.2])
def test_controllers_without_other_rewards_come_to_the_wanted_size(part: float) -> None:
    stages = (Stage(8, 3, 2, "relu"), Stage(16, 4, 2, "hardswish"))
    space = SearchSpace(8, 1, stages, 24, kernels=(3, 5), expansions=(2, 4))
    plain = module(space)
    size, _ = plain.sizes.total(torch.zeros(2, len(space.layers), dtype=torch.long)).tolist()
    search = module(space, target_size=Target(params=part * size), controller_learning_rate=0.1)
    torch.nn.init.normal_(search.controllers.logits)
    for _ in range(300):
        objective = search.size_penalty()
        search.controllers.logits.grad = torch.autograd.grad(objective, search.controllers.logits)[
            0
        ]
        search.controller_optimizer.step()
        search._raise_multipliers()
    assert search.size_misses().abs().max().item() < 0.1
    assert search.size_misses()[1].item() == 0  # multiply-adds were not asked for


def test_what_is_recorded_of_several_paths_is_their_mean(space: SearchSpace) -> None:
    search = module(space, paths_per_step=3)
    held_out, drawn = batch(), search.draw(0)
    assert len(drawn) == 3
    rewards = search.rewards_of(held_out, drawn)
    assert torch.equal(search.search_records["search/reward"], rewards.mean(0))
    each = []
    for choices in drawn:
        search.rewards(held_out, choices)
        each.append(search.search_records["search/accuracy"])
    search.rewards_of(held_out, drawn)
    assert torch.equal(search.search_records["search/accuracy"], torch.stack(each).mean(0))
