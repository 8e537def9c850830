import torch

from mdl.data.domains import Domain
from mdl.data.parcel import Sample
from mdl.data.transforms import BatchTransform, common_statistics


def transform_of(domains: dict[str, Domain], size: int, common: bool = False) -> BatchTransform:
    statistics = common_statistics(domains) if common else None
    return BatchTransform(domains, dict.fromkeys(domains, size), statistics)


def sample(count: int, size: int) -> Sample:
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
    return Sample(images, torch.arange(count), torch.rand(count, 3))


def test_evaluation_cuts_the_middle_and_normalises(domains: dict[str, Domain]) -> None:
    given = sample(2, 10)
    transform = transform_of(domains, 8)
    images, labels = transform({"cars": given}, augment=False)["cars"]
    mean, std = (torch.tensor(of) for of in (domains["cars"].mean, domains["cars"].std))
    middle = given._replace(draws=torch.full((2, 3), 0.5))
    expected = (given.images[:, 1:9, 1:9] / 255 - mean) / std
    exact, _ = transform({"cars": middle}, augment=False)["cars"]
    assert torch.allclose(exact, expected.permute(0, 3, 1, 2), atol=1e-5)
    assert labels.tolist() == [0, 1]
    assert images.shape == (2, 3, 8, 8)


def test_what_is_done_to_an_image_does_not_depend_on_its_company(
    domains: dict[str, Domain],
) -> None:
    transform = transform_of(domains, 8)
    samples = {name: sample(4, 12) for name in domains}
    together = transform(samples, augment=True)
    for name, given in samples.items():
        alone = transform({name: Sample(*(field[2:3] for field in given))}, augment=True)
        assert torch.equal(alone[name][0], together[name][0][2:3])


def test_only_domains_that_allow_it_are_flipped(domains: dict[str, Domain]) -> None:
    given = sample(16, 8)._replace(draws=torch.zeros(16, 3))  # a draw of 0 asks for a flip
    batch = transform_of(domains, 8)({"birds": given, "types": given}, augment=True)
    plain = transform_of(domains, 8)({"birds": given, "types": given}, augment=False)
    assert torch.equal(batch["birds"][0], plain["birds"][0].flip(3))
    assert torch.equal(batch["types"][0], plain["types"][0])


def test_crops_reach_every_place(domains: dict[str, Domain]) -> None:
    images = torch.zeros(500, 3, 3, 3, dtype=torch.uint8)
    images[:, 0, 0] = 255
    given = Sample(images, torch.zeros(500).long(), torch.rand(500, 3))
    cut, _ = transform_of(domains, 2)({"types": given}, augment=True)["types"]
    bright = (cut[:, 0] > cut.min()).flatten(1).any(1).float().mean()
    assert 0.15 < bright < 0.35  # one of four places holds the corner


def test_domains_that_are_normalised_alike_see_the_same_input(domains: dict[str, Domain]) -> None:
    given = sample(4, 8)
    for common in (False, True):
        transform = transform_of(domains, 8, common)
        batch = transform({"birds": given, "cars": given}, augment=False)
        assert torch.equal(batch["birds"][0], batch["cars"][0]) == common


def test_domains_of_different_sizes_are_transformed_as_if_alone(domains: dict[str, Domain]) -> None:
    transform = BatchTransform(domains, {"birds": 8, "cars": 12, "types": 8})
    samples = {"birds": sample(3, 10), "cars": sample(4, 16), "types": sample(2, 10)}
    together = transform(samples, augment=True)
    assert list(together) == list(samples)
    for name, given in samples.items():
        alone, _ = transform({name: given}, augment=True)[name]
        assert torch.equal(alone, together[name][0])
    assert together["cars"][0].shape == (4, 3, 12, 12)
