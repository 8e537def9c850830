import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mdl.data.parcel import NO_LABEL
from mdl.training.logits_table import LogitsTable

domains = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=4
)  # images, classes


def made(shapes: list[tuple[int, int]]) -> tuple[dict, dict]:
    torch.manual_seed(0)
    logits = {f"d{i}": torch.randn(n, k, requires_grad=True) for i, (n, k) in enumerate(shapes)}
    labels = {f"d{i}": torch.randint(k, (n,)) for i, (n, k) in enumerate(shapes)}
    return logits, labels


@given(domains, st.sampled_from([0.0, 0.1]))
def test_losses_and_their_gradients_are_those_of_each_domain_by_itself(shapes, smoothing):
    logits, labels = made(shapes)
    together = LogitsTable(logits).losses(labels, smoothing)
    apart = torch.stack(
        [F.cross_entropy(logits[d], labels[d], label_smoothing=smoothing) for d in logits]
    )
    torch.testing.assert_close(together, apart)
    weights = torch.rand(len(shapes))
    for one, other in zip(
        torch.autograd.grad((weights * together).sum(), list(logits.values())),
        torch.autograd.grad((weights * apart).sum(), list(logits.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@given(domains)
def test_images_without_a_label_count_in_no_sum(shapes):
    logits, labels = made(shapes)
    for of in labels.values():
        of[::2] = NO_LABEL
    table = LogitsTable(logits)
    for at, domain in enumerate(logits):
        known = labels[domain] != NO_LABEL
        kept, target = logits[domain][known], labels[domain][known]
        assert table.labelled(labels)[at] == known.sum()
        assert table.right(labels)[at] == (kept.argmax(1) == target).sum()
        loss = F.cross_entropy(kept.double(), target, reduction="sum")
        torch.testing.assert_close(table.loss_sums(labels)[at], loss, rtol=1e-6, atol=1e-6)


def test_a_domain_with_less_classes_is_never_answered_with_one_that_it_lacks():
    logits = {"few": torch.full((3, 2), -1e9), "many": torch.zeros(2, 9)}
    assert (LogitsTable(logits).values[:3].argmax(1) < 2).all()


def test_half_precision_logits_are_judged_in_single_precision():
    logits = {"d": torch.randn(4, 3).bfloat16()}
    labels = {"d": torch.tensor([0, 1, 2, 0])}
    table = LogitsTable(logits)
    assert table.values.dtype == torch.float32
    assert table.losses(labels)[0] == pytest.approx(
        float(F.cross_entropy(logits["d"].float(), labels["d"]))
    )


def test_what_is_not_finite_stays_in_its_domain():
    logits, labels = made([(3, 2), (2, 4)])
    logits["d0"].data[1, 1] = torch.nan
    losses = LogitsTable(logits).losses(labels, 0.1)
    assert losses.isfinite().tolist() == [False, True]
    (gradient,) = torch.autograd.grad(losses[1], [logits["d1"]])
    assert gradient.isfinite().all()
