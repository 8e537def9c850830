"""Files for PyTorch users: weights with their architecture, and a torch.export program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdl.device.extra import lacks_extra
from mdl.device.metadata import KEY, Metadata
from mdl.device.onnx_model import Logits
from mdl.device.plain import NormalisedImage, PlainPath
from mdl.device.preparation import Colours
from mdl.device.quiet import quietly
from mdl.errors import UserError
from mdl.networks.blocks import domain_key
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.architecture import Architecture
from mdl.whole_files import write_bytes, write_whole

WEIGHTS, ARCHITECTURE = "model.safetensors", "architecture.json"
_BATCH_NORM, _NODES = "batch_norm", "nodes"


def write_safetensors(
    folder: Path, network: MultiPathNetwork, architecture: Architecture, metadata: Metadata
) -> list[Path]:
    """Writes `model.safetensors` and `architecture.json`; `load_network` reads both.

    Gives the files.

    Raises UserError where safetensors is not installed.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise lacks_extra(error) from error
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    told = {
        KEY: metadata.dumps(),
        _BATCH_NORM: network.batch_norm,
        _NODES: "private" if network.private else "shared",
    }
    folder.mkdir(parents=True, exist_ok=True)
    architecture.write(folder / ARCHITECTURE)
    write_bytes(folder / WEIGHTS, save(state, told))
    return [folder / WEIGHTS, folder / ARCHITECTURE]


def load_network(folder: Path) -> tuple[MultiPathNetwork, Architecture, Metadata]:
    """The exported network, in evaluation, its paths, and what its images have to be made into.

    Raises UserError where a file is missing, damaged, or not what an export wrote.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise lacks_extra(error) from error
    architecture, file = Architecture.read(folder / ARCHITECTURE), folder / WEIGHTS
    try:
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} cannot be read: {error}. It may be cut short; export again: "
            "python -m mdl.export RUN"
        ) from error
    metadata = Metadata.loads(told.get(KEY, ""), file)
    network = MultiPathNetwork(
        architecture.space,
        path_users(architecture.space, architecture.paths, told[_NODES] == "private"),
        {d: len(state[f"heads.{domain_key(d)}.bias"]) for d in architecture.domains},
        batch_norm=told[_BATCH_NORM],
    )
    network.load_state_dict(state)
    return network.eval(), architecture, metadata


class EveryPath(nn.Module):
    """{domain: colours [n, 3, s, s] in 0 to 255} -> {domain: logits [n, classes]}."""

    def __init__(self, paths: Mapping[str, PlainPath]) -> None:
        super().__init__()
        self.domains = tuple(paths)
        self.paths = nn.ModuleList(paths.values())

    def forward(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        return {d: path(images[d]) for d, path in zip(self.domains, self.paths, strict=True)}


def write_program(file: Path, paths: Mapping[str, PlainPath], metadata: Metadata) -> None:
    """Writes a torch.export program of all domains, any number of images each."""
    images, counts = {}, {}
    for number, domain in enumerate(paths):
        side = metadata.domain(domain).image_size
        images[domain] = torch.zeros(2, 3, side, side)
        counts[domain] = {0: torch.export.Dim(f"n{number}", min=1)}
    with quietly():
        program: Any = torch.export.export(
            EveryPath(paths), (images,), dynamic_shapes=(counts,), strict=False
        )
        write_whole(
            file,
            lambda beside: torch.export.save(program, beside, extra_files={KEY: metadata.dumps()}),
        )


class NetworkModel:
    """The exported weights in the network of this project."""

    def __init__(self, folder: Path) -> None:
        self._network, self._architecture, self._metadata = load_network(folder)
        self.domains = list(self._metadata.domains)

    def metadata(self, domain: str) -> Metadata:
        return self._metadata.of(domain)

    @torch.inference_mode()
    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]."""
        of = self._metadata.domain(domain)
        images = {domain: NormalisedImage(of.mean, of.std)(torch.from_numpy(colours))}
        logits: Logits = self._network(images, self._architecture.paths)[domain].numpy()
        return logits


class ProgramModel:
    """The exported torch.export program."""

    def __init__(self, file: Path) -> None:
        extra = {KEY: ""}
        self._program = torch.export.load(file, extra_files=extra).module()
        self._metadata = Metadata.loads(extra[KEY], file)
        self.domains = list(self._metadata.domains)

    def metadata(self, domain: str) -> Metadata:
        return self._metadata.of(domain)

    @torch.inference_mode()
    def logits(self, domain: str, colours: Colours) -> Logits:
        """Colours [n, 3, s, s] in 0 to 255 -> logits [n, classes]."""
        sides = {name: of.image_size for name, of in self._metadata.domains.items()}
        images = {name: torch.zeros(1, 3, side, side) for name, side in sides.items()}
        images[domain] = torch.from_numpy(colours)
        logits: Logits = self._program(images)[domain].numpy()
        return logits
