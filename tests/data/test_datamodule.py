"""Which domains' images a run trains on, and which it evaluates."""

from itertools import islice

import pytest
import torch

from mdl.data.datamodule import MultiDomainData
from mdl.data.domains import Domain
from mdl.data.parcel import Sample
from tests.conftest import SIZES


def data(domains: dict[str, Domain], sampling: str, *trained: str) -> MultiDomainData:
    size = dict.fromkeys(domains, 12)
    return MultiDomainData(
        domains,
        batch_size=8,
        image_size=size,
        load_size=size,
        seed=3,
        sampling=sampling,
        trained=trained,
    )


def batches(of: MultiDomainData) -> list[dict[str, Sample]]:
    return [batch for batch, _, _ in islice(iter(of.train_dataloader()), 4)]


@pytest.mark.parametrize("sampling", ["balanced", "proportional"])
def test_images_of_a_trained_domain_do_not_depend_on_those_that_are_not(
    domains: dict[str, Domain], sampling: str
) -> None:
    every = batches(data(domains, sampling))
    some = batches(data(domains, sampling, "types", "birds"))
    assert all(list(of) == ["types", "birds"] for of in some)
    for whole, part in zip(every, some, strict=True):
        for domain, sample in part.items():
            assert all(map(torch.equal, sample, whole[domain]))


def test_evaluation_is_of_all_domains(domains: dict[str, Domain]) -> None:
    stream = data(domains, "balanced", "types").val_dataloader()
    assert {domain for batch in stream for domain in batch} == set(SIZES)
