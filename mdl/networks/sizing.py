"""Paths whose network has a wanted size: likely ones, and the size expected of drawn ones.

Sizes are of the whole network: parameters with heads and norm, what is shared counted once, and
multiply-adds summed over domains.

Not given in the MPNAS paper as known here; ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mdl.errors import UserError
from mdl.networks.cost import CostTable
from mdl.networks.parameters import ParameterTable

TOLERANCE = 0.05
"""Part by which a network that was searched for a target may miss it."""

_NEAR = 0.02  # what is tried for; a space of few blocks has no network that near to every size

_NEVER = -1e9  # log probability of a block that a layer lacks: no size is worth it
_FIRST_PRICE, _PRICE_RISE, _RISES = 0.01, 1.3, 80
_MOST_CHANGES, _LEAST_GAIN = 2000, 1e-9
_RESTARTS = 20


@dataclass(frozen=True)
class Target:
    """Wanted totals of a network; None: whatever comes."""

    params: float | None = None
    macs: float | None = None

    def __bool__(self) -> bool:
        return self.params is not None or self.macs is not None

    def misses(self, sizes: Tensor) -> Tensor:
        """Sizes [..., 2] (parameters, multiply-adds) -> size / target - 1; 0 where none is set."""
        wanted = [self.params, self.macs]
        parts = [
            torch.zeros_like(sizes[..., i]) if total is None else sizes[..., i] / total - 1
            for i, total in enumerate(wanted)
        ]
        return torch.stack(parts, -1)


ANY_SIZE = Target()


class SizeTable(nn.Module):
    """Parameters and multiply-adds of every choice.

    once [layers, blocks]: parameters that a block adds as soon as it has a user; per_user
    [layers, blocks]: those that each user adds; macs [domains, layers, blocks].
    private: whether each domain has its nodes for itself. common: whether all domains are drawn
    one path, by one controller.
    """

    once: Tensor
    per_user: Tensor
    macs: Tensor
    fixed: Tensor

    def __init__(
        self, parameters: ParameterTable, costs: CostTable, private: bool, common: bool = False
    ) -> None:
        super().__init__()
        self.common = common
        once, per_user = parameters.choices(private)
        self.register_buffer("once", once, persistent=False)
        self.register_buffer("per_user", per_user, persistent=False)
        self.register_buffer("macs", costs.choices(), persistent=False)
        fixed = [float(parameters.fixed(private)), float(costs.fixed().sum())]
        self.register_buffer("fixed", torch.tensor(fixed), persistent=False)

    def expected(self, probabilities: Tensor) -> Tensor:
        """Parameters and multiply-adds, [2], expected of paths drawn so.

        probabilities: of each domain's choices, [domains, layers, blocks]. A block is there with
        probability 1 - product over domains of (1 - p_d), as domains are drawn independently;
        of one common path, with its p.
        """
        there = probabilities[0] if self.common else 1 - (1 - probabilities).prod(0)
        params = (there * self.once).sum() + (probabilities * self.per_user).sum()
        return torch.stack([params, (probabilities * self.macs).sum()]) + self.fixed

    def total(self, choices: Tensor) -> Tensor:
        """Parameters and multiply-adds, [2], of the network of choices [domains, layers]."""
        return self.expected(F.one_hot(choices, self.once.shape[-1]).to(self.macs))


def most_likely_choices(log_probabilities: Tensor, sizes: SizeTable, target: Target) -> Tensor:
    """Likely choices [domains, layers] whose network has the target's size within `TOLERANCE`.

    log_probabilities: of each domain's choices, [domains, layers, blocks], minus infinity where
    a layer lacks the block.

    Starts from the most likely choices and goes uphill in log probability less price times
    distance to the target, by single changes and by moving all users of a block to another; the
    price rises until the size is right. Where that ends too far off, as with one path, whose size
    one change takes far beyond the target, it starts again with noise on the log probabilities,
    and of those that arrive the likeliest is taken. A heuristic: likelier ones may exist.

    Raises UserError where none of the size are found.
    """
    log_p = log_probabilities.detach().double().cpu().clamp(min=_NEVER)
    climb = _Climb(log_p, sizes, target)
    nearest, within = climb.towards_target()
    if within is not None:
        return nearest
    found: list[Tensor] = []
    for noisy in _noisy(log_p, sizes.common):
        choices, within = _Climb(noisy, sizes, target).towards_target()
        if within is not None:
            found.append(climb.up(choices, 0.0, within))
    if found:
        return max(found, key=climb.log_probability)
    raise UserError(_not_found(sizes.total(nearest), target))


def _noisy(log_p: Tensor, common: bool) -> Iterator[Tensor]:
    """Log probabilities with ever more noise; the same noise for all domains of a common path."""
    generator = torch.Generator().manual_seed(0)
    rows = log_p[:1] if common else log_p
    for restart in range(_RESTARTS):
        noise = torch.randn(rows.shape, generator=generator, dtype=log_p.dtype)
        yield log_p + noise * (1 + restart)


@dataclass(frozen=True)
class _Changes:
    """What some changes to choices gain in log probability, and the sizes [..., 2] they lead to."""

    gains: Tensor
    sizes: Tensor
    of_all_users: bool


class _Climb:
    """Goes from choices to better ones by single changes."""

    def __init__(self, log_p: Tensor, sizes: SizeTable, target: Target) -> None:
        self.log_p, self.target = log_p, target
        self.once, self.per_user = sizes.once.double().cpu(), sizes.per_user.double().cpu()
        self.macs = sizes.macs.double().cpu()
        self.total, self.common = sizes.total, sizes.common

    def distance(self, sizes: Tensor) -> Tensor:
        """Greatest miss of sizes [..., 2]."""
        return self.target.misses(sizes).abs().amax(-1)

    def log_probability(self, choices: Tensor) -> float:
        """Of all domains' choices [domains, layers]."""
        return float(self.log_p.gather(-1, choices[..., None]).sum())

    def towards_target(self) -> tuple[Tensor, float | None]:
        """Choices near the target, and within which part of it; None: the nearest found are not."""
        choices = nearest = self.log_p.argmax(-1)
        price = _FIRST_PRICE
        for _ in range(_RISES):
            if self.distance(self.total(choices)) <= _NEAR:
                return self.up(choices, price, _NEAR), _NEAR
            choices = self.up(choices, price)
            nearest = min(nearest, choices, key=lambda of: float(self.distance(self.total(of))))
            price *= _PRICE_RISE
        if self.distance(self.total(nearest)) <= TOLERANCE:
            return self.up(nearest, price, TOLERANCE), TOLERANCE
        return nearest, None

    def up(self, choices: Tensor, price: float, within: float | None = None) -> Tensor:
        """Takes the best change while there is one; `within`: never leaving that distance."""
        for _ in range(_MOST_CHANGES):
            now = self.total(choices).double().cpu()
            kinds = [self.of_all_users(choices, now)]
            if not self.common:
                kinds.append(self.of_one_domain(choices, now))
            here = self.distance(now)
            worth = [
                of.gains - price * (self.distance(of.sizes) - here)
                if within is None
                else of.gains.where(self.distance(of.sizes) <= within, _NEVER)
                for of in kinds
            ]
            best = max(range(len(kinds)), key=lambda kind: float(worth[kind].max()))
            if worth[best].max() < _LEAST_GAIN:
                break
            place = np.unravel_index(int(worth[best].argmax()), worth[best].shape)
            first, second, block = map(int, place)
            choices = choices.clone()
            if kinds[best].of_all_users:  # layer, old block
                choices[choices[:, first] == second, first] = block
            else:  # domain, layer
                choices[first, second] = block
        return choices

    def of_one_domain(self, choices: Tensor, now: Tensor) -> _Changes:
        """One domain takes another block at a layer: [domains, layers, blocks]."""
        taken = F.one_hot(choices, self.once.shape[-1])
        users, old = taken.sum(0), choices[..., None]
        new = self.per_user + self.once * (users == 0)
        left = self.per_user + self.once * (users == 1)
        params = new - left.expand_as(taken).gather(-1, old)
        macs = self.macs - self.macs.gather(-1, old)
        gains = self.log_p - self.log_p.gather(-1, old)
        stays = taken.bool()
        sizes = torch.stack([params.masked_fill(stays, 0), macs], -1) + now
        return _Changes(gains, sizes, of_all_users=False)

    def of_all_users(self, choices: Tensor, now: Tensor) -> _Changes:
        """All users of a block at a layer take another: [layers, old blocks, blocks]."""
        taken = F.one_hot(choices, self.once.shape[-1]).double()
        users = taken.sum(0)[..., None]
        params = users * (self.per_user[:, None] - self.per_user[..., None])
        params = params + (self.once * (users[..., 0] == 0))[:, None] - self.once[..., None]
        stays = torch.eye(self.once.shape[-1], dtype=torch.bool) | (users == 0)
        macs, gains = (
            torch.einsum("dlo,dlb->lob", taken, of)
            - torch.einsum("dlo,dlo->lo", taken, of)[..., None]
            for of in (self.macs, self.log_p)
        )
        changes = [values.masked_fill(stays, 0) for values in (params, macs)]
        sizes = torch.stack(changes, -1) + now
        return _Changes(gains.masked_fill(stays, 0), sizes, of_all_users=True)


def _not_found(sizes: Tensor, target: Target) -> str:
    wanted = {"params": target.params, "macs": target.macs}
    nearest = dict(zip(wanted, sizes.tolist(), strict=True))
    missed = [
        f"search.target.{name} is {total:.4g}, the nearest network found has {nearest[name]:.4g}"
        for name, total in wanted.items()
        if total is not None
    ]
    return (
        f"No paths of the wanted size were found: {'; '.join(missed)}; expected within "
        f"{TOLERANCE:.0%}. Take a target that the space can reach, or another space."
    )
