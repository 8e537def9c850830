"""Exact accuracy and loss of every domain over a split, batched over domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from mdl.data.parcel import NO_LABEL


class DomainAccuracy(Metric):
    """Top-1 accuracy and mean cross entropy per domain, [domains] each.

    Counts are summed over ranks; images without a label are left out.
    """

    correct: Tensor
    total: Tensor
    loss: Tensor

    def __init__(self, domains: Sequence[str]) -> None:
        super().__init__()
        self.domains = tuple(domains)
        for state in ("correct", "total", "loss"):
            dtype = torch.double if state == "loss" else torch.long
            zeros = torch.zeros(len(self.domains), dtype=dtype)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    def update(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        for domain, of in logits.items():
            row, target = self.domains.index(domain), labels[domain]
            self.correct[row] += (of.argmax(1) == target).sum()
            self.total[row] += (target != NO_LABEL).sum()
            self.loss[row] += F.cross_entropy(
                of.float(), target, ignore_index=NO_LABEL, reduction="sum"
            )

    def compute(self) -> dict[str, Tensor]:
        counted = self.total.clamp(min=1)
        return {
            "accuracy": self.correct / counted,
            "loss": (self.loss / counted).float(),
            "images": self.total.clone(),
        }
