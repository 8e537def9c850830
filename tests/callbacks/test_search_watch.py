"""What the watch counts; what it says in a run is in tests/test_research.py."""

import torch

from callbacks.search_watch import SearchWatch
from mdl.space.search_space import SearchSpace
from tests.training.test_search import CLASSES, batch, module


def test_the_images_of_all_ranks_are_counted(space: SearchSpace) -> None:
    """An accuracy is the mean over ranks, each of which has answered as many images."""
    search, watch = module(space), SearchWatch()
    search.search_records = {"search/accuracy": torch.tensor([0.5, 0.25])}
    for _ in range(2):
        watch._count(search, batch(4), ranks=3)
    assert watch._images.tolist() == [24.0] * len(CLASSES)
    assert watch._accuracy is not None
    assert (watch._accuracy / watch._images).tolist() == [0.5, 0.25]
