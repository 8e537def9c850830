"""A finished retraining, opened to be exported or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mdl.assembly import build_data, build_retrain, find_domains
from mdl.data.datamodule import MultiDomainData
from mdl.data.decoding import decode
from mdl.data.domains import Domain
from mdl.data.images import BrokenImage
from mdl.data.parcel import NUM_DRAWS, Sample
from mdl.data.shards import ShardImages
from mdl.device.metadata import DomainMetadata, Metadata
from mdl.device.plain import NormalisedImage, PlainPath, plain_paths
from mdl.device.preparation import Colours, prepare
from mdl.errors import UserError
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.recipe import Recipe, image_sizes, load_sizes
from mdl.run_folder import RunFolder
from mdl.scoring import choose_checkpoint
from mdl.space.architecture import Architecture
from mdl.space.search_space import Path as SpacePath
from mdl.training.retrain import RetrainModule
from mdl.weights import load_weights

_BATCH = 64
_CALIBRATION_IMAGES = 128  # of each domain


@dataclass(frozen=True)
class Trained:
    """A retraining's network with the weights of a checkpoint, and its data."""

    folder: RunFolder
    recipe: Recipe
    architecture: Architecture
    module: RetrainModule
    data: MultiDomainData
    metadata: Metadata

    @classmethod
    def open(cls, run: Path, wanted: str | None = None) -> Trained:
        """wanted: 'best' or 'last' checkpoint; None: the best by validation, else the last.

        Raises UserError where the run is a search's, or not finished.
        """
        folder = RunFolder.find(run)
        recipe = folder.recipe()
        if recipe.phase != "retrain":
            raise UserError(
                f"{run} is the run of a search, whose super-network is nothing to export; expected "
                f"a retrained network: {folder.retrain_command()}"
            )
        if not folder.is_finished("retrain", recipe.trainer.max_steps):
            done = folder.finished_steps("retrain")
            raise UserError(
                f"{run} is not finished: scores after {done} of {recipe.trainer.max_steps} steps. "
                f"Go on with it: {folder.go_on_command()}"
            )
        checkpoint, domains = choose_checkpoint(folder, wanted), find_domains(recipe)
        architecture = Architecture.read(folder.architecture_file)
        module = build_retrain(recipe, domains, architecture)
        step = load_weights(module, folder.checkpoints_dir / checkpoint, recipe, domains)
        data = build_data(recipe, domains, architecture=architecture)
        source = {"run": recipe.name, "checkpoint": checkpoint, "step": step, "seed": recipe.seed}
        metadata = Metadata(_describe(recipe, data), source)
        return cls(folder, recipe, architecture, module.eval(), data, metadata)

    def network(self, domains: Sequence[str]) -> MultiPathNetwork:
        """What is evaluated, of some domains: a copy, in the memory format that exporters take."""
        whole = self.module.average.module
        assert isinstance(whole, MultiPathNetwork)
        network = MultiPathNetwork(
            whole.space,
            path_users(whole.space, self.paths(domains), whole.private),
            {domain: whole.num_classes[domain] for domain in domains},
            batch_norm=whole.batch_norm,
        )
        network.inherit(whole)
        return network.eval()

    def paths(self, domains: Sequence[str]) -> dict[str, SpacePath]:
        return {domain: self.module.paths[domain] for domain in domains}

    def plain_paths(
        self, form: str, domains: Sequence[str], int8: bool = False
    ) -> dict[str, PlainPath]:
        """Chains of plain convolutions of some domains, see `mdl.device.plain`."""
        alike: dict[tuple[tuple[float, ...], ...], NormalisedImage] = {}
        normalisation, sizes = {}, {}
        for domain in domains:
            of = self.metadata.domain(domain)
            # one module for equal ones: what follows it may be common work
            module = alike.setdefault((of.mean, of.std), NormalisedImage(of.mean, of.std))
            normalisation[domain], sizes[domain] = module, of.image_size
        return plain_paths(
            self.network(domains), self.paths(domains), normalisation, sizes, form, int8
        )

    def images(
        self, domain: str, split: str, most: int | None = None
    ) -> tuple[list[bytes], Tensor]:
        """Images of a split that can be decoded, evenly spaced, and their labels [n].

        Validation images are those of 'val'; a domain that lacks the split gives those of 'test'.
        """
        of = self.data.domains[domain]
        shards = ShardImages(of, split if split in of.splits else "test")
        count = len(shards) if most is None else min(most, len(shards))
        chosen = np.linspace(0, len(shards) - 1, count).round().astype(int).tolist()
        contents, labels = [], []
        for image in chosen:
            try:
                content = shards.read(image)
                self._square(content, domain)
            except BrokenImage:
                continue
            contents.append(content)
            labels.append(int(shards.rows["label"][image]))
        return contents, torch.tensor(labels)

    def prepared(self, domain: str, contents: Sequence[bytes]) -> Colours:
        """Encoded images as an exported network takes them, [n, 3, s, s]."""
        of = self.metadata.domain(domain)
        return np.concatenate([prepare(content, of) for content in contents])

    def calibration(self, domains: Sequence[str]) -> dict[str, Colours]:
        """Training images of each domain, that ranges of INT8 are measured on."""
        images = {of: self.images(of, "train", _CALIBRATION_IMAGES)[0] for of in domains}
        return {domain: self.prepared(domain, of) for domain, of in images.items()}

    @torch.inference_mode()
    def logits(self, domain: str, contents: Sequence[bytes]) -> Tensor:
        """What the trained network answers, [n, classes], by the way of evaluation."""
        answers = []
        for first in range(0, len(contents), _BATCH):
            squares = [self._square(of, domain) for of in contents[first : first + _BATCH]]
            count = len(squares)
            sample = Sample(
                torch.from_numpy(np.stack(squares)),
                torch.zeros(count, dtype=torch.int64),
                torch.full((count, NUM_DRAWS), 0.5),
            )
            batch = self.data.transform({domain: sample}, augment=False)
            answers.append(self.module.average_logits(batch)[domain])
        return torch.cat(answers)

    def _square(self, content: bytes, domain: str) -> np.ndarray:
        return decode(content, self.data.load_size[domain], self.data.domains[domain].fit)


def _describe(recipe: Recipe, data: MultiDomainData) -> dict[str, DomainMetadata]:
    sizes, loads = image_sizes(recipe.data, data.domains), load_sizes(recipe.data, data.domains)

    def describe(name: str, domain: Domain) -> DomainMetadata:
        mean, std = data.statistics(name)
        return DomainMetadata(
            domain.classes, sizes[name], loads[name], domain.size, domain.fit, mean, std
        )

    return {name: describe(name, domain) for name, domain in data.domains.items()}
