"""The Visual Domain Decathlon (Rebuffi, Bilen, Vedaldi, NIPS 2017): its domains and its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DecathlonDomain:
    """A row of the challenge's table, in the order of the devkit's ids.

    baseline: test accuracy of the fully fine-tuned networks, which score 250 points each.
    flip: whether a mirror image keeps its label; not so for signs, characters and digits.
    """

    name: str
    classes: int
    train: int
    val: int
    test: int
    baseline: float
    flip: bool = True


DOMAINS = (
    DecathlonDomain("aircraft", 100, 3_334, 3_333, 3_333, 0.6034),
    DecathlonDomain("cifar100", 100, 40_000, 10_000, 10_000, 0.8212),
    DecathlonDomain("daimlerpedcls", 2, 23_520, 5_880, 19_600, 0.9282),
    DecathlonDomain("dtd", 47, 1_880, 1_880, 1_880, 0.5553),
    DecathlonDomain("gtsrb", 43, 31_367, 7_842, 12_630, 0.9753, flip=False),
    DecathlonDomain("imagenet12", 1000, 1_232_167, 49_000, 48_238, 0.5987),
    DecathlonDomain("omniglot", 1623, 17_853, 6_492, 8_115, 0.8769, flip=False),
    DecathlonDomain("svhn", 10, 47_217, 26_040, 26_032, 0.9655, flip=False),
    DecathlonDomain("ucf101", 101, 7_585, 1_952, 3_783, 0.5120),
    DecathlonDomain("vgg-flowers", 102, 1_020, 1_020, 6_149, 0.8141),
)


def category_id(domain: str, label: int) -> int:
    """The challenge's number of a class: k * 10^7 + class, classes from one, k the domain's."""
    number = [of.name for of in DOMAINS].index(domain) + 1
    return number * 10_000_000 + label + 1


def image_ids(domain: str, split: str) -> range:
    """The challenge's numbers of a split's images: k * 10^7 + 200000 + a running number.

    The running number counts from one over train, val and test.
    """
    number, of = next((n, of) for n, of in enumerate(DOMAINS, 1) if of.name == domain)
    counts = {"train": of.train, "val": of.val, "test": of.test}
    first = number * 10_000_000 + 200_001
    for name, count in counts.items():
        if name == split:
            return range(first, first + count)
        first += count
    raise ValueError(f"Parameter `split` should be train, val or test. Found `split = {split!r}`.")


def is_decathlon(domains: Mapping[str, object]) -> bool:
    """Whether these are exactly the ten domains of the challenge."""
    return set(domains) == {domain.name for domain in DOMAINS}


def decathlon_points(accuracy: Mapping[str, float]) -> dict[str, float]:
    """Points of each domain, at most 1000; their sum is the challenge's score S.

    alpha * max(0, Emax - E)^2, with E the test error, Emax twice the baseline's error, and
    alpha = 1000 / Emax^2. accuracy: domain -> test accuracy in [0, 1].
    """
    points = {}
    for domain in DOMAINS:
        worst = 2 * (1 - domain.baseline)
        error = 1 - accuracy[domain.name]
        points[domain.name] = 1000 * (max(0.0, worst - error) / worst) ** 2
    return points
