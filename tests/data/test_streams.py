"""The laws of the streams, over sizes, ranks, workers and interruptions."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mdl.command import tell
from mdl.data.domains import Domain
from mdl.data.images import BrokenImage
from mdl.data.order import windowed_permutation
from mdl.data.packing import pack_domain
from mdl.data.parcel import Parcel, Part, Sample, filled
from mdl.data.shards import ShardImages
from mdl.data.source import DomainSource
from mdl.data.steps import (
    DomainImages,
    EvaluationSteps,
    Share,
    TrainingOrder,
    TrainingSteps,
    training_images,
)
from mdl.data.streams import BrokenImages, EvaluationStream, TrainingFeed
from mdl.errors import UserError
from tests.conftest import coloured

SIZE = 12
fixtures_stay = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)


class NumberedImages:
    """Stands in for a domain's images: an image is its own number."""

    size = 1

    def __init__(self, name: str, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.domain = type("D", (), {"name": name})()
        self.shards = type("S", (), {"name_of": staticmethod(lambda i: f"{name}:{i}")})()
        self.chosen = np.arange(count)
        self.broken = broken

    def __len__(self) -> int:
        return len(self.chosen)

    def decode(self, image: int, into: np.ndarray) -> int:
        if image in self.broken:
            raise BrokenImage
        into[:] = image % 256
        return image

    def decode_all(self, images: np.ndarray, into: np.ndarray, labels: np.ndarray) -> bool:
        return False


def order(count: int, seed: int = 0, broken: frozenset[int] = frozenset()) -> TrainingOrder:
    return TrainingOrder(NumberedImages("birds", count, broken), seed, "train")  # type: ignore[arg-type]


def part(order: TrainingOrder, numbers: np.ndarray) -> Part:
    parcel = Parcel.empty({("it",): (len(numbers), order.images.size)})
    (it,) = parcel.open().values()
    order.fill(numbers, it)
    return it


def numbers(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count)


@given(st.integers(1, 50), st.integers(0, 3), st.integers(0, 5))
def test_every_epoch_shows_every_image_once(count: int, seed: int, epoch: int) -> None:
    found = part(order(count, seed), numbers(epoch * count, count))
    assert sorted(found.sample.labels.tolist()) == list(range(count))


@given(st.integers(20, 60), st.integers(0, 5))
def test_epochs_come_in_fresh_orders(count: int, seed: int) -> None:
    labels = part(order(count, seed), numbers(0, 2 * count)).sample.labels
    assert labels[:count].tolist() != labels[count:].tolist()


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 64))
def test_a_batch_is_a_function_of_its_numbers_alone(count: int, first: int, size: int) -> None:
    whole = part(order(count), numbers(0, first + size)).sample
    resumed = part(order(count), numbers(first, size)).sample
    assert torch.equal(whole.labels[first:], resumed.labels)
    assert torch.equal(whole.draws[first:], resumed.draws)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 9))
def test_ranks_see_between_them_the_images_of_one(
    count: int, ranks: int, per_rank: int, step: int
) -> None:
    size = ranks * per_rank

    def labels(share: Share) -> list[int]:
        steps = TrainingSteps({"train": {"birds": order(count)}}, {"train": {"birds": size}}, share)
        found: list[int] = steps[step].open()["train", "birds"].sample.labels.tolist()
        return found

    together = [labels(Share(rank, ranks)) for rank in range(ranks)]
    interleaved = [label for slot in zip(*together, strict=True) for label in slot]
    assert interleaved == labels(Share())


@given(st.integers(2, 30), st.data())
def test_a_broken_image_shifts_no_position(count: int, data: st.DataObject) -> None:
    broken = data.draw(st.frozensets(st.integers(0, count - 1), max_size=count - 1))
    whole = part(order(count), numbers(0, 2 * count)).sample.labels.tolist()
    found = part(order(count, broken=broken), numbers(0, 2 * count))
    mended = found.sample.labels.tolist()
    assert all(label not in broken for label in mended)
    assert [a for a, b in zip(whole, mended, strict=True) if a != b] == [
        a for a in whole if a in broken
    ]
    assert set(found.broken) == {f"birds:{image}" for image in broken}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 7))
def test_evaluation_sees_every_image_once_on_any_ranks(
    counts: list[int], ranks: int, batch_size: int
) -> None:
    images = {f"d{i}": NumberedImages(f"d{i}", count) for i, count in enumerate(counts)}
    seen: Counter[tuple[str, int]] = Counter()
    lengths = set()
    for rank in range(ranks):
        steps = EvaluationSteps(images, batch_size, Share(rank, ranks))  # type: ignore[arg-type]
        lengths.add(len(steps))
        for step in range(len(steps)):
            for (domain,), of in steps[step].open().items():
                seen.update((domain, label) for label in of.sample.labels.tolist())
    expected = {(f"d{i}", label) for i, count in enumerate(counts) for label in range(count)}
    assert set(seen) == expected
    assert set(seen.values()) == {1}
    assert len(lengths) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 13), st.integers(0, 9))
def test_a_window_shows_every_image_once_with_few_shards_open(
    sizes: list[int], window: int, key: int
) -> None:
    shards = np.repeat(np.arange(len(sizes)), sizes)
    walked = windowed_permutation(key, shards, window)
    assert sorted(walked) == list(range(len(shards)))
    seen_in_order = list(dict.fromkeys(shards[walked]))
    # a shard is done with before any of a later window's is opened
    for at in range(0, len(sizes), window):
        of_window = set(seen_in_order[at : at + window])
        places = np.flatnonzero(np.isin(shards[walked], list(of_window)))
        assert places.max() - places.min() + 1 == len(places)


def test_a_window_over_all_shards_mixes_like_a_uniform_permutation() -> None:
    """Far apart in the shards, anywhere in the epoch: and otherwise in the next."""
    shards = np.repeat(np.arange(20), 50)
    one, two = (windowed_permutation(key, shards, 20) for key in (1, 2))
    for walked in (one, two):
        assert abs(np.corrcoef(walked, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(np.argsort(one), np.argsort(two))[0, 1]) < 0.1


@pytest.mark.parametrize(("window", "together"), [(1, 1.0), (4, 0.25), (10, 0.1)])
def test_neighbours_come_from_one_shard_as_often_as_the_window_says(
    window: int, together: float
) -> None:
    """How far a window mixes: two neighbours share their shard once in `window` times."""
    shards = np.repeat(np.arange(40), 50)
    found = []
    for key in range(10):
        walked = shards[windowed_permutation(key, shards, window)]
        found.append((walked[1:] == walked[:-1]).mean())
    assert np.mean(found) == pytest.approx(together, abs=0.03)


def test_windows_hold_other_shards_in_each_epoch() -> None:
    shards = np.repeat(np.arange(40), 50)
    pairs = [
        {frozenset(part) for part in shards[walked].reshape(-1, 200).tolist()}
        for walked in (windowed_permutation(key, shards, 4) for key in (1, 2))
    ]
    assert not pairs[0] & pairs[1]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 60),
    st.one_of(st.none(), st.integers(1, 5)),
    st.data(),
)
def test_any_ranks_and_any_interruption_see_the_unbroken_order(
    counts: dict[str, int],
    ranks: int,
    per_rank: int,
    stop: int,
    window: int | None,
    data: st.DataObject,
) -> None:
    """Of any sizes, with batches of their own: what all ranks see from a step on is fixed."""
    size = {name: ranks * per_rank * data.draw(st.integers(1, 3)) for name in counts}

    def orders() -> dict[str, TrainingOrder]:
        made = {}
        for name, count in counts.items():
            images = NumberedImages(name, count)
            images.shards.rows = {"shard": np.arange(count) // 7}  # type: ignore[attr-defined]
            made[name] = TrainingOrder(images, 3, "train", window)  # type: ignore[arg-type]
        return made

    def seen(share: Share, steps: range) -> dict[str, list[list[int]]]:
        of_rank = TrainingSteps({"train": orders()}, {"train": size}, share)
        parts = [of_rank[step].open() for step in steps]
        return {name: [of["train", name].sample.labels.tolist() for of in parts] for name in counts}

    unbroken = seen(Share(), range(stop + 3))
    resumed = [seen(Share(rank, ranks), range(stop, stop + 3)) for rank in range(ranks)]
    for name in counts:
        for at in range(3):
            slots = zip(*(of_rank[name][at] for of_rank in resumed), strict=True)
            assert [label for slot in slots for label in slot] == unbroken[name][stop + at]


def feed(domains: dict[str, Domain], first_step: int, workers: int) -> TrainingFeed:
    orders = {
        name: TrainingOrder(training_images(domain, SIZE, None)[0], 5, "train")
        for name, domain in domains.items()
    }
    steps = TrainingSteps({"train": orders}, {"train": dict.fromkeys(orders, 8)})
    return TrainingFeed(steps, first_step, workers, BrokenImages(0))


def take(domains: dict[str, Domain], first: int, steps: int, workers: int) -> list[torch.Tensor]:
    iterators = iterate(domains, first, workers)
    return [torch.cat([next(it).images for it in iterators]) for _ in range(steps)]


def iterate(domains: dict[str, Domain], first: int, workers: int) -> list[Iterator[Sample]]:
    return [iter(stream) for stream in feed(domains, first, workers).streams()["train"].values()]


def test_workers_and_interruptions_change_no_image(domains: dict[str, Domain]) -> None:
    unbroken = take(domains, 0, 7, workers=0)
    for workers in (1, 3):
        for a, b in zip(unbroken, take(domains, 0, 7, workers), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(unbroken[4:], take(domains, 4, 3, workers=2), strict=True):
        assert torch.equal(a, b)


TRAINER = """
import multiprocessing, sys, time
from pathlib import Path
from mdl.data.domains import read_domains
from tests.data.test_streams import iterate
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    streams = iterate(read_domains(Path(sys.argv[2])), 0, 2)
    first = [next(stream) for stream in streams]
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_trainer_that_is_killed(
    packed: Path, tmp_path: Path, method: str
) -> None:
    file = tmp_path / "trainer.py"
    file.write_text(TRAINER)
    words = [sys.executable, str(file), method, str(packed)]
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    trainer = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert trainer.stdout is not None
    workers = [Path("/proc") / pid for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2 and all(worker.exists() for worker in workers)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    for _ in range(600):
        if not any(worker.exists() for worker in workers):
            return
        time.sleep(0.1)
    raise AssertionError("workers go on")


def test_resuming_decodes_nothing_that_was_seen(
    domains: dict[str, Domain], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()
    original = DomainImages.decode

    def counting(self: DomainImages, image: int, into: np.ndarray) -> int:
        decoded[self.domain.name] += 1
        return original(self, image, into)

    monkeypatch.setattr(DomainImages, "decode", counting)
    take(domains, 1000, 1, workers=0)
    assert set(decoded.values()) == {8}


def test_held_out_images_are_never_trained_on(domains: dict[str, Domain]) -> None:
    for domain in domains.values():
        train, held = training_images(domain, SIZE, 0.25)
        assert held is not None
        assert not set(train.chosen) & set(held.chosen)
        assert len(train) + len(held) == domain.splits["train"].images


def test_a_domain_of_one_image_cannot_be_searched(tmp_path: Path) -> None:
    source = DomainSource("lonely", ["a"], {"train": coloured(1, 1)}, flip=True)
    lonely = pack_domain(source, tmp_path, size=72)
    with pytest.raises(UserError, match="a search needs at least two"):
        training_images(lonely, SIZE, 0.25)


def test_broken_images_are_named_counted_and_then_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = BrokenImages(limit=2)
    broken.add("birds", ["a", "b"])
    broken.add("birds", ["a"])  # the same image again is no further one
    assert "broken image b (2 of domain 'birds'; limit 2)" in caplog.text
    with pytest.raises(UserError, match=r"'birds' holds more broken images than .* 3 found"):
        broken.add("birds", ["c"])


def test_a_broken_image_counts_in_no_score(domains: dict[str, Domain], tmp_path: Path) -> None:
    images = DomainImages(domains["birds"], ShardImages(domains["birds"], "test"), SIZE)
    images.shards.read = lambda image: b"\x89PNG but no more"  # type: ignore[method-assign]
    stream = EvaluationStream(EvaluationSteps({"birds": images}, 4), 0, BrokenImages(100))
    labels = torch.cat([batch["birds"].labels for batch in stream])
    assert labels.tolist() == [-1] * 10


def test_what_a_worker_of_one_rank_meets_is_told_by_that_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each node has a disk and a network of its own: the first rank may meet nothing."""
    monkeypatch.setenv("RANK", "1")

    def fails(key: tuple[str, ...], part: Part) -> None:
        raise UserError("The disk of data.cache_dir is full.")

    with pytest.raises(UserError) as met:
        filled({("a",): (1, 2)}, fails).open()
    tell(met.value)
    assert capsys.readouterr().err == "error: The disk of data.cache_dir is full.\n"
