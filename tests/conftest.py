"""Small packed domains and a small space, made once for all tests."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

os.environ.setdefault("WANDB_MODE", "disabled")

from mdl import fit
from mdl.assembly import build_space
from mdl.data.domains import Domain, read_domains
from mdl.data.packing import pack_domain
from mdl.data.source import DomainSource
from mdl.recipe_files import load_recipe
from mdl.space.architecture import Architecture
from mdl.space.search_space import ZERO, Block, SearchSpace, Stage

settings.register_profile("no test asserts a time", deadline=None)
settings.load_profile("no test asserts a time")


@pytest.fixture(autouse=True)
def _seeded_single_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@dataclass(frozen=True)
class ColouredImage:
    """A noisy square whose colour is its class: learnt in a few steps."""

    label: int
    index: int
    side: int
    name: str = "coloured"
    id: int = -1
    version: str = ""

    def load(self) -> bytes:
        generator = np.random.default_rng([self.label, self.index])
        pixels = generator.integers(0, 120, (self.side, self.side, 3))
        pixels[..., self.label % 3] += 60 + 40 * (self.label // 3)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()


def coloured(classes: int, count: int, side: int = 12) -> list[ColouredImage]:
    return [ColouredImage(i % classes, i, side) for i in range(count)]


# name -> classes, training images: sizes far apart, one smaller than a batch
SIZES = {"birds": (3, 90), "cars": (4, 41), "types": (2, 6)}


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three packed domains."""
    root = tmp_path_factory.mktemp("packed")
    for name, (classes, count) in SIZES.items():
        images = {
            "train": coloured(classes, count),
            "val": coloured(classes, 13),
            "test": coloured(classes, 10),
        }
        names = [f"class{i}" for i in range(classes)]
        pack_domain(DomainSource(name, names, images, flip=name != "types"), root, size=72)
    return root


@pytest.fixture
def domains(packed: Path) -> dict[str, Domain]:
    return read_domains(packed)


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    """Four layers, two of which may be skipped."""
    return SearchSpace(
        stem_width=8,
        stem_stride=1,
        stages=(Stage(8, 2, 2, "relu"), Stage(16, 2, 2, "hardswish")),
        head_width=24,
        kernels=(3, 5),
        expansions=(2,),
    )


SMALL_SPACE = [
    "space.stem_width=8",
    "space.stem_stride=1",
    "space.stages=[{width: 8, depth: 2, stride: 2, activation: relu}]",
    "space.head_width=16",
    "space.expansions=[2]",
]


@pytest.fixture
def small_run(packed: Path, tmp_path: Path) -> list[str]:
    """Overrides that make a recipe's run take a second or two."""
    return small_words(packed, tmp_path / "runs")


def small_words(data: Path, runs: Path) -> list[str]:
    """The words of `small_run`."""
    return [
        *SMALL_SPACE,
        f"data.root={data}",
        f"runs_dir={runs}",
        "data.image_size=12",
        "data.load_size=12",
        "data.batch_size=4",
        "data.workers=0",
        "trainer.max_steps=8",
        "trainer.threads=1",
        "trainer.validation_interval=4",
        "trainer.checkpoint_interval=3",
        "trainer.record_interval=2",
        "trainer.accelerator=cpu",
        "wandb.mode=disabled",
        "search.held_out_batch_size=4",
    ]


@pytest.fixture(scope="session")
def finished_run(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished retraining of three domains: nodes shared by some, zero, gates."""
    root = tmp_path_factory.mktemp("finished")
    words = small_words(packed, root / "runs")
    space = build_space(load_recipe(["recipes/mpnas_retrain.yaml", *words]).space)
    small, gated, large = Block(3, 2, False), Block(3, 2, True), Block(5, 2, True)
    paths = {"birds": (gated, small), "cars": (gated, large), "types": (gated, ZERO)}
    Architecture(space, paths).write(root / "architecture.json")
    words += ["data.load_size=15", f"architecture_file={root / 'architecture.json'}"]
    fit.main(["recipes/mpnas_retrain.yaml", *words])
    return root / "runs" / "mpnas_retrain"
