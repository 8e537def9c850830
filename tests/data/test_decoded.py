"""Images that were decoded once are those that would be decoded for each step."""

import errno
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mdl.data.datamodule import MultiDomainData
from mdl.data.decoded import DecodedImages
from mdl.data.domains import Domain
from mdl.data.images import BrokenImage
from mdl.data.parcel import Sample
from mdl.data.shards import ShardImages
from mdl.errors import UserError


def data(domains: dict[str, Domain], decoded_dir: Path | None, workers: int = 0) -> MultiDomainData:
    return MultiDomainData(
        domains,
        batch_size=8,
        image_size=dict.fromkeys(domains, 9),
        load_size=dict.fromkeys(domains, 10),
        seed=3,
        held_out_batch_size=4,
        workers=workers,
        broken_images_limit=100,
        decoded_dir=decoded_dir,
    )


def training(of: MultiDomainData) -> list[dict[str, Sample]]:
    batches = [batch for batch, _, _ in islice(iter(of.train_dataloader()), 12)]
    return [stream for batch in batches for stream in batch.values()]


def assert_equal(some: list[dict[str, Sample]], others: list[dict[str, Sample]]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert list(one) == list(other)
        for domain, sample in one.items():
            assert all(map(torch.equal, sample, other[domain]))


@pytest.fixture
def with_broken(domains: dict[str, Domain], monkeypatch: pytest.MonkeyPatch) -> dict[str, Domain]:
    """The domains, whose every seventh image cannot be decoded."""
    read = ShardImages.read

    def reading(shards: ShardImages, image: int) -> bytes:
        return b"none" if image % 7 == 2 else read(shards, image)

    monkeypatch.setattr(ShardImages, "read", reading)
    return domains


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("which", ["domains", "with_broken"])
def test_every_step_is_the_same_to_the_bit(
    request: pytest.FixtureRequest, which: str, workers: int, tmp_path: Path
) -> None:
    domains: dict[str, Domain] = request.getfixturevalue(which)
    each, once = data(domains, None), data(domains, tmp_path, workers)
    assert_equal(training(each), training(once))
    assert_equal(list(each.val_dataloader()), list(once.val_dataloader()))
    assert each.broken_images.names == once.broken_images.names


def test_they_are_decoded_once(
    domains: dict[str, Domain], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    training(data(domains, tmp_path))
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")}

    def refuse(*_: object) -> bytes:
        raise AssertionError("an image was read again")

    monkeypatch.setattr(ShardImages, "read", refuse)
    training(data(domains, tmp_path))
    assert files and {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.npy")} == files


def test_another_size_is_another_file(domains: dict[str, Domain], tmp_path: Path) -> None:
    domain = domains["birds"]
    shards = ShardImages(domain, "train")
    for size in (8, 10):
        into = np.empty((size, size, 3), np.uint8)
        DecodedImages(tmp_path, domain, shards, size).read(0, into)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_what_is_sent_to_another_process_is_a_name(
    with_broken: dict[str, Domain], tmp_path: Path
) -> None:
    images = DecodedImages(
        tmp_path, with_broken["birds"], ShardImages(with_broken["birds"], "train"), 8
    )
    into = np.empty((8, 8, 3), np.uint8)
    images.read(0, into)
    sent = pickle.dumps(images)
    assert len(sent) < 1000
    again, there = pickle.loads(sent), np.empty((8, 8, 3), np.uint8)
    again.read(0, there)
    assert np.array_equal(into, there)
    with pytest.raises(BrokenImage):
        again.read(2, there)


def test_a_file_that_was_not_finished_is_made_again(
    domains: dict[str, Domain], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shards = ShardImages(domains["birds"], "train")

    def fails(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardImages, "read", fails)
        DecodedImages(tmp_path, domains["birds"], shards, 8)
    assert not list(tmp_path.glob("*.npy"))
    DecodedImages(tmp_path, domains["birds"], shards, 8).read(0, np.empty((8, 8, 3), np.uint8))


def test_damage_to_a_shard_is_not_kept(domains: dict[str, Domain], tmp_path: Path) -> None:
    """A shard that was still being copied is whole later: its images are not broken for good."""
    folder = Path(shutil.copytree(domains["birds"].folder, tmp_path / "birds"))
    domain = Domain.read(folder)
    shard = folder / domain.splits["train"].shards[0].file
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], content[:1000] + bytes(600) + content[1600:]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"does not match its checksum .* Restore it"):
            DecodedImages(tmp_path, domain, ShardImages(domain, "train"), 8)
        assert not list(tmp_path.glob("*.npy"))
    shard.write_bytes(content)
    images = DecodedImages(tmp_path, domain, ShardImages(domain, "train"), 8)
    for image in range(domain.splits["train"].images):
        images.read(image, np.empty((8, 8, 3), np.uint8))


def test_what_a_killed_process_left_is_removed(domains: dict[str, Domain], tmp_path: Path) -> None:
    domain, shards = domains["birds"], ShardImages(domains["birds"], "train")
    DecodedImages(tmp_path, domain, shards, 8)
    (file,) = tmp_path.glob("*.npy")
    left = tmp_path / f".{'0' * 32}.partial.{file.name}"
    file.rename(left)
    DecodedImages(tmp_path, domain, shards, 8)
    assert file.is_file() and not left.exists()


def test_threads_that_decode_open_a_shard_once(
    domains: dict[str, Domain], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    opens = os.open

    def slowly(path: str, flags: int) -> int:
        time.sleep(0.02)
        opened.append(path)
        return opens(path, flags)

    shards = ShardImages(domains["birds"], "train")
    with monkeypatch.context() as patch:
        patch.setattr("mdl.data.shards.os.open", slowly)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(shards.read, range(8)))
    assert len(opened) == len(set(opened)) > 0


def test_a_full_disk_and_a_cut_file_are_told(
    domains: dict[str, Domain], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    domain, shards = domains["birds"], ShardImages(domains["birds"], "train")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left"):
        patch.setattr(os, "posix_fallocate", full)
        DecodedImages(tmp_path, domain, shards, 8)
    assert not list(tmp_path.glob("*.npy"))

    images = DecodedImages(tmp_path, domain, shards, 8)
    (file,) = tmp_path.glob("*.npy")
    os.truncate(file, file.stat().st_size - 100)
    with pytest.raises(UserError, match="Remove it: it is made again"):
        images.read(0, np.empty((8, 8, 3), np.uint8))
