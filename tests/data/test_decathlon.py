import pytest

from mdl.data.decathlon import DOMAINS, decathlon_points, is_decathlon

ORDER = "imagenet12 aircraft cifar100 daimlerpedcls dtd gtsrb vgg-flowers omniglot svhn ucf101"
# test accuracies and score as published: MTAN's table 4, NetTailor's table 3
PUBLISHED = {
    "finetune": ("59.87 60.34 82.12 92.82 55.53 97.53 81.41 87.69 96.55 51.20", 2500),
    "parallel adapters": ("60.32 64.21 81.91 94.73 58.83 99.38 84.68 89.21 96.54 50.94", 3412),
    "NetTailor": ("61.42 75.07 81.84 94.68 61.28 99.52 86.53 90.09 96.44 49.54", 3744),
    "scratch": ("59.87 57.10 75.73 91.20 37.77 96.55 56.3 88.74 96.63 43.27", 1625),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_a_published_row_gives_its_published_score(method: str) -> None:
    row, score = PUBLISHED[method]
    accuracy = {name: float(v) / 100 for name, v in zip(ORDER.split(), row.split(), strict=True)}
    assert sum(decathlon_points(accuracy).values()) == pytest.approx(score, abs=3)


def test_the_baseline_scores_250_in_every_domain() -> None:
    points = decathlon_points({domain.name: domain.baseline for domain in DOMAINS})
    assert list(points.values()) == pytest.approx([250] * 10)


def test_the_ten_are_told_from_others() -> None:
    ten = {domain.name: None for domain in DOMAINS}
    assert is_decathlon(ten)
    assert not is_decathlon(dict.fromkeys(list(ten)[1:]))
    assert not is_decathlon(ten | {"mine": None})
