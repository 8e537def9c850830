"""An ExecuTorch program of several paths."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from mdl.device.executorch_file import write_executorch
from mdl.device.executorch_model import ExecutorchModel
from mdl.device.metadata import DomainMetadata, Metadata
from mdl.device.plain import FOLDED, NormalisedImage, plain_paths
from mdl.networks.multipath import MultiPathNetwork, path_users
from mdl.space.search_space import SearchSpace

DOMAINS = ("birds", "cars")
GREY = (0.5, 0.5, 0.5)


@pytest.mark.skipif(find_spec("executorch") is None, reason="needs executorch")
@pytest.mark.parametrize("together", [True, False])
def test_common_work_becomes_a_method_of_all_domains_where_it_may(
    space: SearchSpace, tmp_path: Path, together: bool
) -> None:
    paths = dict.fromkeys(DOMAINS, space.uniform_path(space.reference_block))
    classes = dict.fromkeys(DOMAINS, 2)
    users = path_users(space, paths)
    network = MultiPathNetwork(space, users, classes, batch_norm="shared").eval()
    normalised = dict.fromkeys(DOMAINS, NormalisedImage(GREY, GREY))
    chains = plain_paths(network, paths, normalised, dict.fromkeys(DOMAINS, 8), FOLDED)
    told = dict.fromkeys(DOMAINS, DomainMetadata(("a", "b"), 8, 8, 8, "crop", GREY, GREY))
    write_executorch(tmp_path / "model.pte", chains, Metadata(told, {}), together=together)
    model = ExecutorchModel(tmp_path / "model.pte")
    assert model.domains == list(DOMAINS)
    assert (model.together is not None) == together
