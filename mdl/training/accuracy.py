"""Exact accuracy and loss of every domain over a split, batched over domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mdl.training.logits_table import LogitsTable


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
        """Logits [b, classes] and labels [b] of some domains."""
        table = LogitsTable(logits)
        rows = [self.domains.index(domain) for domain in table.domains]
        self.correct[rows] += table.right(labels)
        self.total[rows] += table.labelled(labels)
        self.loss[rows] += table.loss_sums(labels)

    def compute(self) -> dict[str, Tensor]:
        counted = self.total.clamp(min=1)
        return {
            "accuracy": self.correct / counted,
            "loss": (self.loss / counted).float(),
            "images": self.total.clone(),
        }
