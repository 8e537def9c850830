"""Latencies of the paths that controllers draw, and likely paths within a budget of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mdl.errors import UserError
from mdl.networks.controller import on_device
from mdl.space.latency import LatencyTable

TOLERANCE = 0.02
"""Part by which a path may exceed its budget: a table predicts no better."""

_FIRST_PRICE, _PRICE_RISE, _RISES = 0.01, 1.3, 80


class PathLatencies(nn.Module):
    """Milliseconds of every choice of every domain, against a budget.

    choices [domains, layers, blocks]; fixed [domains]: what no choice changes; budget [domains].
    common: whether all domains take one path, which is to be within each one's budget.
    """

    choices: Tensor
    fixed: Tensor
    budget: Tensor

    def __init__(
        self,
        table: LatencyTable,
        num_classes: Mapping[str, int],
        budget: Mapping[str, float],
        common: bool = False,
    ) -> None:
        super().__init__()
        self.domains, self.common = tuple(num_classes), common
        most = max(len(layer.blocks) for layer in table.space.layers)
        ms = torch.zeros(len(table.blocks), most)
        for row, (layer, of) in enumerate(zip(table.space.layers, table.blocks, strict=True)):
            ms[row, : len(layer.blocks)] = torch.tensor([of[block] for block in layer.blocks])
        fixed = [table.fixed + table.per_class * classes for classes in num_classes.values()]
        wanted = [budget[domain] for domain in num_classes]
        self.register_buffer("choices", ms.expand(len(fixed), -1, -1).clone(), persistent=False)
        self.register_buffer("fixed", torch.tensor(fixed), persistent=False)
        self.register_buffer("budget", torch.tensor(wanted), persistent=False)

    def of(self, choices: Tensor) -> Tensor:
        """Milliseconds of the paths of choices [domains, layers]: [domains]."""
        chosen = on_device(choices, self.choices.device)[:, :, None]
        return self.choices.gather(-1, chosen).sum((1, 2)) + self.fixed

    def likely_within(self, log_p: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Likely choices [domains, layers] whose paths are within their budgets.

        log_p: log probabilities [domains, layers, blocks]. choose: gives the most likely choices by
        some log probabilities, e.g. those of a wanted size. They are asked of probabilities less a
        price of time, which rises for each domain until it is within its budget; a heuristic. One
        path for all has one price, which rises until all are.

        Raises UserError where a budget cannot be met.
        """
        price = torch.zeros(len(self.domains), 1, 1, device=log_p.device)
        budget = self.budget.min().expand_as(self.budget) if self.common else self.budget
        for _ in range(_RISES):
            choices = choose(log_p - price * self.choices / budget[:, None, None])
            over = self.of(choices) > self.budget * (1 + TOLERANCE)
            if not over.any():
                return choices
            if self.common:
                over = torch.ones_like(over)
            raised = (price * _PRICE_RISE).clamp(min=_FIRST_PRICE)
            price = torch.where(over[:, None, None], raised, price)
        worst = int((self.of(choices) / self.budget).argmax())
        raise UserError(
            f"No path of '{self.domains[worst]}' within its budget was found: "
            f"search.latency.budget is {float(self.budget[worst]):.4g} ms, the nearest takes "
            f"{float(self.of(choices)[worst]):.4g}. Raise it, or take another space or target."
        )
