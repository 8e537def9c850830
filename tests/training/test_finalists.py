"""Laws of a search's last round."""

import random
from pathlib import Path

import pytest
import torch

from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.architecture import Architecture
from mdl.space.search_space import SearchSpace, Stage
from mdl.training.finalists import FinalistsModule
from tests.training.test_search import CLASSES, SETTINGS, Endless, changed, state, trainer

SPACE = SearchSpace(4, 2, (Stage(4, 3, 1, "relu"),), 8, (3, 5), (2,), (False,))
OF_WEIGHTS = (
    "learning_rate",
    "weight_decay",
    "warmup_fraction",
    "label_smoothing",
    "clip_norm",
    "record_interval",
)


def module(seeds: list[int], steps: int) -> FinalistsModule:
    architectures, networks = [], []
    for seed in seeds:
        generator = random.Random(seed)
        paths = {domain: SPACE.random_path(generator) for domain in CLASSES}
        architectures.append(Architecture(SPACE, paths))
        torch.manual_seed(seed)
        networks.append(MultiPathNetwork(SPACE, path_users(SPACE, paths), CLASSES))
    settings = {key: SETTINGS[key] for key in OF_WEIGHTS} | {"total_steps": steps}
    return FinalistsModule(networks, architectures, ema_decay=0.9, **settings)  # type: ignore[arg-type]


def fit(finalists: FinalistsModule, folder: Path) -> None:
    torch.manual_seed(0)  # of the images
    trainer(folder, finalists.total_steps).fit(finalists, Endless())


@pytest.mark.parametrize(("count", "steps"), [(2, 6), (3, 6), (5, 7), (8, 30)])
def test_rounds_halve_the_finalists_until_one_is_left(
    count: int, steps: int, tmp_path: Path
) -> None:
    finalists = module(list(range(count)), steps)
    left: list[int] = []
    halve = finalists.halve
    finalists.halve = lambda of: (left.append(len(of)), halve(of))  # type: ignore[method-assign]
    fit(finalists, tmp_path)
    assert left == [-(-count // 2**at) for at in range(len(left))]
    assert int(finalists.remaining.sum()) == 1
    best = int(finalists.remaining.nonzero())
    found = finalists.architecture({"run": "this"})
    assert found.paths == finalists.architectures[best].paths
    assert found.source == {"run": "this", "finalist": best}


def test_a_finalist_learns_as_it_does_in_other_company(tmp_path: Path) -> None:
    one, other = module([1, 2], 4), module([3, 1], 4)
    fit(one, tmp_path)
    fit(other, tmp_path)
    mine, same = one.networks[0].state_dict(), other.networks[1].state_dict()
    assert mine.keys() == same.keys()
    assert all(torch.equal(mine[name], same[name]) for name in mine)


def test_who_answers_worse_is_dropped_and_rests(tmp_path: Path) -> None:
    finalists = module([1, 2, 3, 4], 2)  # two rounds of a step each
    taught = torch.tensor([0.1, 0.9, 0.8, 0.2])

    def answer(batch: object, left: list[int]) -> None:
        finalists.right[left] += taught[left, None]

    finalists.answer = answer  # type: ignore[assignment,method-assign]
    after_first: dict[int, dict[str, torch.Tensor]] = {}
    halve = finalists.halve

    def noting(left: list[int]) -> None:
        halve(left)
        after_first.update(
            {} if after_first else {at: state(finalists.networks[at]) for at in range(4)}
        )

    finalists.halve = noting  # type: ignore[assignment,method-assign]
    fit(finalists, tmp_path)
    moved = [bool(changed(finalists.networks[at], after_first[at])) for at in range(4)]
    assert moved == [False, True, True, False]
    assert finalists.remaining.tolist() == [False, True, False, False]


def test_held_out_images_are_answered_at_the_end_of_each_round_only() -> None:
    finalists = module([1, 2, 3, 4], 40)
    answering = [step for step in range(1, 41) if finalists.answers(step)]
    assert answering == [19, 20, 39, 40]
