"""Logits of all domains as one table, so that losses and accuracies are one call each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from mdl.data.parcel import NO_LABEL


class LogitsTable:
    """Logits [b_d, classes_d] of domains, a row per image; classes that a domain lacks are -inf.

    values: [n, most classes], float32, one domain's images after the other's.
    No loop over domains; a value that is not finite stays in its domain.
    """

    def __init__(self, logits: Mapping[str, Tensor]) -> None:
        self.domains = tuple(logits)
        first = next(iter(logits.values()))
        shapes = tuple((of.shape[0], of.shape[1]) for of in logits.values())
        self._plan = _plan(shapes, first.device)
        flat = torch.cat([*(of.float().flatten() for of in logits.values()), self._plan.missing])
        self.values = flat[self._plan.index]

    def losses(self, labels: Mapping[str, Tensor], smoothing: float = 0.0) -> Tensor:
        """Cross entropy of each domain, the mean over its images, [domains].

        smoothing: part of the target that all classes of the domain share equally.
        """
        each = self._each_loss(self._labels(labels), smoothing)
        return self._plan.sums(each) / self._plan.counts

    def loss_sums(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Sum of the cross entropy over images that have a label, [domains], float64."""
        target = self._labels(labels)
        each = self._each_loss(target.clamp(min=0), 0.0).masked_fill(target == NO_LABEL, 0.0)
        return self._plan.sums(each.double())

    def right(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Number of images whose greatest logit is of their label, [domains]."""
        return self._plan.sums(self.values.argmax(1) == self._labels(labels))

    def accuracies(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Share of right answers, [domains]; images without a label are wrong ones."""
        return self.right(labels) / self._plan.counts

    def labelled(self, labels: Mapping[str, Tensor]) -> Tensor:
        """Number of images that have a label, [domains]."""
        return self._plan.sums(self._labels(labels) != NO_LABEL)

    def _labels(self, labels: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([labels[domain] for domain in self.domains])

    def _each_loss(self, target: Tensor, smoothing: float) -> Tensor:
        log_p = self.values.log_softmax(1)
        loss = -log_p.gather(1, target[:, None]).squeeze(1)
        if not smoothing:
            return loss
        share = log_p.masked_fill(self._plan.lacks, 0.0).sum(1) / self._plan.classes
        return (1 - smoothing) * loss - smoothing * share


class _Plan:
    """What follows from the shapes of the logits alone."""

    def __init__(self, shapes: tuple[tuple[int, int], ...], device: torch.device) -> None:
        most = max(classes for _, classes in shapes)
        end = sum(count * classes for count, classes in shapes)  # where the missing value lies
        index: list[Tensor] = []
        start = 0
        for count, classes in shapes:
            place = torch.full((count, most), end)
            place[:, :classes] = torch.arange(start, start + count * classes).view(count, classes)
            index.append(place)
            start += count * classes
        counts = torch.tensor([count for count, _ in shapes])
        domain = torch.arange(len(shapes)).repeat_interleave(counts)
        at = torch.arange(int(counts.max()))
        rows = (counts.cumsum(0) - counts)[:, None] + at
        self.index = torch.cat(index).to(device)  # of values in the flat logits
        self.missing = torch.full((1,), -torch.inf, device=device)
        self.lacks = (torch.cat(index) == end).to(device)
        self.classes = torch.tensor([k for _, k in shapes])[domain].to(device)  # per image
        self.counts = counts.clamp(min=1).to(device)
        # of each domain's images, [domains, most images]; one after the last for none
        self.rows = rows.where(at < counts[:, None], len(domain)).to(device)

    def sums(self, values: Tensor) -> Tensor:
        """Values per image [n] -> their sums over each domain's images [domains]."""
        return torch.cat([values, values.new_zeros(1)])[self.rows].sum(1)


# Evaluations end in batches of other shapes, one for each domain that ends. None is dropped: a
# captured CUDA graph reads a plan by its address.
_plan = cache(_Plan)
