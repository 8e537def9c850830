"""What all contenders train: a space, domains with made-up images, paths, one optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdl.assembly import build_space
from mdl.data.transforms import Batch
from mdl.networks.controller import Controllers
from mdl.networks.multipath import MultiPathNetwork, Users, path_users, supernet_users
from mdl.recipe_files import load_recipe
from mdl.space.search_space import Path, SearchSpace
from mdl.training.optim import clip_gradients, weight_optimizer

CLIP_NORM = 5.0


@dataclass(frozen=True)
class Problem:
    """Domains of a space, with a batch of images each."""

    space: SearchSpace
    num_classes: Mapping[str, int]
    image_size: int
    batch_size: int  # of each domain
    device: torch.device

    @property
    def domains(self) -> list[str]:
        return list(self.num_classes)

    def batch(self, batch_size: int | None = None) -> Batch:
        generator = torch.Generator().manual_seed(0)
        size, made = self.image_size, {}
        for domain, classes in self.num_classes.items():
            shape = (batch_size or self.batch_size, 3, size, size)
            images = torch.randn(shape, generator=generator).to(self.device)
            labels = torch.randint(classes, shape[:1], generator=generator).to(self.device)
            made[domain] = (images.contiguous(memory_format=torch.channels_last), labels)
        return made

    def random_paths(self, draw: int, common: bool = False) -> dict[str, Path]:
        """A path for each domain by itself; or, common, one for all."""
        controllers = Controllers(self.space, self.domains)
        return controllers.paths(controllers.sample_start(0, draw, common))

    def uniform_paths(self) -> dict[str, Path]:
        """The reference block at every layer, for all domains."""
        return dict.fromkeys(self.domains, self.space.uniform_path(self.space.reference_block))

    def supernet(self, tied: bool = False) -> MultiPathNetwork:
        return self.placed(MultiPathNetwork(*self.of_supernet, running=False, tied=tied))

    @property
    def of_supernet(self) -> tuple[SearchSpace, Users, Mapping[str, int]]:
        """What a super-network is made of."""
        return self.space, supernet_users(self.space, self.domains), self.num_classes

    def derived(self, paths: Mapping[str, Path], private: bool = False) -> MultiPathNetwork:
        users = path_users(self.space, paths, private)
        return self.placed(MultiPathNetwork(self.space, users, self.num_classes))

    def placed(self, network: MultiPathNetwork) -> MultiPathNetwork:
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


RECIPES = {
    "32 px": ["recipes/mpnas_retrain.yaml"],
    "32 px, small images": ["recipes/mpnas_retrain.yaml", "recipes/small_images.yaml"],
    "64 px": ["recipes/mpnas_retrain.yaml", "recipes/decathlon.yaml"],
}


def problem(
    name: str, domains: int = 10, batch_size: int = 16, device: str = "cpu", classes: int = 47
) -> Problem:
    """The space and image size of a recipe; domains with some classes each."""
    recipe = load_recipe(RECIPES[name])
    return Problem(
        build_space(recipe.space),
        {f"domain{number}": classes for number in range(domains)},
        recipe.data.image_size,
        batch_size,
        torch.device(device),
    )


class Stepper:
    """A training step of any network: losses by `forward`, backward, clip, AdamW.

    Without Lightning, schedule, average, records.
    """

    def __init__(self, network: nn.Module, norm_momentum: bool = True) -> None:
        self.network = network
        self.optimizer = weight_optimizer(network, 3e-3, 0.02, norm_momentum)

    def step(self, logits: Mapping[str, Tensor], batch: Batch) -> None:
        self.gradients(logits, batch)
        self.optimizer.step()

    def gradients(self, logits: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Sets the clipped gradients of the summed losses; gives their norm before."""
        losses = [F.cross_entropy(logits[d].float(), batch[d][1]) for d in batch]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        return clip_gradients(self.network.parameters(), CLIP_NORM)
