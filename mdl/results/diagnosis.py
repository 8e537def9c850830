"""Whether a search's reward means anything: found paths against random ones, and rank
correlation with accuracy after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef

from mdl.results.styles import domain_styles, new_figure, styled
from mdl.results.table import Table, percent

_FEWEST = 3  # points of which a rank correlation says anything


@dataclass(frozen=True)
class FoundAgainstRandom:
    """Accuracy by the super-network's weights on images that the search never saw.

    found [domains]; random [draws, domains], of networks of equal parameters and multiply-adds.
    """

    domains: Sequence[str]
    found: Tensor
    random: Tensor

    @property
    def lead(self) -> float:
        """Mean over domains, over the mean of the random ones."""
        return float(self.found.mean() - self.random.mean())

    @property
    def beaten(self) -> int:
        """How many random networks are worse on average over domains."""
        return int((self.random.mean(1) < self.found.mean()).sum())

    def table(self, split: str) -> Table:
        found = [*self.found.tolist(), self.found.mean().item()]
        mean = [*self.random.mean(0).tolist(), self.random.mean().item()]
        means = self.random.mean(1)
        deviations = [*self.random.std(0).tolist(), means.std().item()]
        rows = [
            [name, percent(a), percent(b), f"{100 * (a - b):+.1f}", f"{100 * sd:.1f}"]
            for name, a, b, sd in zip([*self.domains, "mean"], found, mean, deviations, strict=True)
        ]
        columns = ["domain", "found, %", "random, %", "difference", "sd of random"]
        note = (
            f"Top-1 on {split} by the super-network's weights. In the mean over domains the found "
            f"network leads random ones of equal parameters and multiply-adds by "
            f"{100 * self.lead:+.1f} points and beats {self.beaten} of {len(self.random)}."
        )
        return Table("The reward of found and of random paths", columns, rows, note)

    def content(self) -> dict[str, Any]:
        return {
            "found": dict(zip(self.domains, self.found.tolist(), strict=True)),
            "random": [dict(zip(self.domains, of, strict=True)) for of in self.random.tolist()],
        }


@dataclass(frozen=True)
class RewardAgainstTraining:
    """Accuracies of architectures by the super-network and after training.

    reward, trained [architectures, domains], both on one split; NaN where an architecture lacks a
    domain.
    """

    runs: Sequence[str]
    domains: Sequence[str]
    reward: Tensor
    trained: Tensor

    def taus(self) -> dict[str, tuple[float, int]]:
        """Kendall's tau-b and the number of architectures: by domain, and of their mean.

        'mean': of the mean over domains, of architectures that have all of them. Domains with
        fewer than three architectures, or with equal accuracies only, are left out.
        """
        found = {}
        for column, domain in enumerate(self.domains):
            reward, trained = self.reward[:, column], self.trained[:, column]
            there = ~(reward.isnan() | trained.isnan())
            if (tau := kendall_tau(reward[there], trained[there])) is not None:
                found[domain] = (tau, int(there.sum()))
        whole = ~(self.reward.isnan() | self.trained.isnan()).any(1)
        tau = kendall_tau(self.reward[whole].mean(1), self.trained[whole].mean(1))
        if tau is not None and len(self.domains) > 1:
            found["mean"] = (tau, int(whole.sum()))
        return found

    def table(self, split: str) -> Table:
        rows = [[name, f"{tau:+.2f}", str(count)] for name, (tau, count) in self.taus().items()]
        note = f"Kendall's tau-b of {split} top-1 by the super-network and after training."
        if not rows:
            note += f" There is none: it takes {_FEWEST} networks or more that differ."
        return Table("Reward and accuracy after training", ["domain", "tau", "paths"], rows, note)

    def content(self) -> dict[str, Any]:
        return {
            "runs": list(self.runs),
            "taus": {name: tau for name, (tau, _) in self.taus().items()},
            "reward": _rows(self.reward, self.domains),
            "trained": _rows(self.trained, self.domains),
        }


def kendall_tau(one: Tensor, other: Tensor) -> float | None:
    """Kendall's tau-b of two rankings [n]; None where there is nothing to rank."""
    if len(one) < _FEWEST or one.unique().numel() < 2 or other.unique().numel() < 2:
        return None
    # in whole numbers: ties are then what they are, not what rounding makes of them
    ranks = [values.double().unique(return_inverse=True)[1].float() for values in (one, other)]
    tau = kendall_rank_corrcoef(ranks[0], ranks[1], variant="b")
    assert isinstance(tau, Tensor)  # a pair with its probability comes only where asked for
    return float(tau)


@styled
def reward_figure(found: RewardAgainstTraining, split: str) -> Figure:
    """A point per architecture and domain, each domain by its difference from its mean."""
    figure = new_figure(5.6, 3.6)
    axes = figure.subplots()
    styles = domain_styles(list(found.domains))
    for column, domain in enumerate(found.domains):
        reward, trained = found.reward[:, column], found.trained[:, column]
        there = ~(reward.isnan() | trained.isnan())
        if there.any():
            axes.plot(
                100 * (reward[there] - reward[there].mean()),
                100 * (trained[there] - trained[there].mean()),
                linestyle="",
                marker=styles[domain].marker,
                color=styles[domain].colour,
                markersize=4,
                label=domain,
            )
    axes.set_xlabel(f"{split} top-1 by the super-network, points over the domain's mean")
    axes.set_ylabel("after training")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    figure.legend(loc="outside right center")
    return figure


def _rows(table: Tensor, domains: Sequence[str]) -> list[dict[str, float]]:
    return [
        {domain: value for domain, value in zip(domains, row, strict=True) if value == value}
        for row in table.tolist()
    ]
