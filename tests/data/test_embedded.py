"""The generated domains: worth learning, and the same everywhere."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mdl.data import embedded
from mdl.data.embedded import generated_domains, is_generated, pack_generated
from mdl.data.miniature import DOMAINS, miniature_image

NAMES = [domain.name for domain in DOMAINS]


def test_there_are_ten_of_sizes_twenty_times_apart() -> None:
    sizes = [domain.images["train"] for domain in DOMAINS]
    assert len(set(NAMES)) == 10
    assert max(sizes) >= 20 * min(sizes)
    assert len({domain.stands_for for domain in DOMAINS}) == 10


@pytest.mark.parametrize("domain", DOMAINS, ids=NAMES)
def test_an_image_is_a_function_of_its_place_and_the_seed(domain) -> None:  # type: ignore[no-untyped-def]
    first, label = miniature_image(domain, "train", 5, 0)
    miniature_image(domain, "val", 9, 0)
    again, _ = miniature_image(domain, "train", 5, 0)
    assert (np.asarray(first) == np.asarray(again)).all()
    other, _ = miniature_image(domain, "train", 5, 1)
    assert (np.asarray(first) != np.asarray(other)).any()
    assert label == 5 % len(domain.classes)


@pytest.mark.parametrize("domain", DOMAINS, ids=NAMES)
def test_no_test_image_stands_in_the_training_split(domain) -> None:  # type: ignore[no-untyped-def]
    train = {miniature_image(domain, "train", i, 0)[0].tobytes() for i in range(60)}
    test = {miniature_image(domain, "test", i, 0)[0].tobytes() for i in range(60)}
    assert len(train) == len(test) == 60
    assert not train & test


def test_labels_are_known_before_an_image_is_drawn() -> None:
    for source in generated_domains():
        for split, images in source.images.items():
            labels = {image.label for image in images}
            assert labels == set(range(len(source.classes))), (source.name, split)


def test_what_an_interrupted_start_left_out_is_made_on_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"train": 8, "val": 4, "test": 4}
    small = [replace(domain, images=few) for domain in DOMAINS[:3]]
    monkeypatch.setattr(embedded, "DOMAINS", small)
    pack_generated(tmp_path)
    shutil.rmtree(tmp_path / small[1].name)
    assert not is_generated(tmp_path)
    assert pack_generated(tmp_path) == [small[0].name, small[2].name]
    assert is_generated(tmp_path)
