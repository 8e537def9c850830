"""Controllers: which block each domain takes at each layer, as logits.

One vector of logits per layer and domain, as in TuNAS (Bender et al., CVPR 2020). All domains
and layers are one tensor, so that sampling, probabilities and entropies are one call each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from mdl.data.order import stable_key
from mdl.space.search_space import ZERO, Block, Layer, Path, SearchSpace


def equally_likely_blocks(layer: Layer) -> list[float]:
    """Probability of each block of a layer, as in TuNAS."""
    return [1 / len(layer.blocks)] * len(layer.blocks)


def equally_likely_expansions(layer: Layer) -> list[float]:
    """The same, drawn in two steps: the expansion, to skip the layer being 0, then the rest.

    A skipped layer is one choice in three then, not in nine. Not given in the MPNAS paper as known
    here; ours: shallow paths with wide layers train better than deep and narrow ones of the same
    cost, and a super-network that seldom skips does not tell (docs/results/comparison.md).
    """
    expansions = [0 if block == ZERO else block.expansion for block in layer.blocks]
    kinds = len(set(expansions))
    return [1 / (kinds * expansions.count(expansion)) for expansion in expansions]


STARTS: dict[str, Callable[[Layer], list[float]]] = {
    "blocks": equally_likely_blocks,
    "expansions": equally_likely_expansions,
}


def on_device(choices: Tensor, device: torch.device) -> Tensor:
    """Choices of paths on a device, which are handed over without waiting for it."""
    if device.type == "cuda" and not choices.is_cuda:
        return choices.pin_memory().to(device, non_blocking=True)
    return choices.to(device)


class Controllers(nn.Module):
    """A controller per domain; or, `common`, one for all domains (multi-head NAS).

    Choices [domains, layers] are indices into the blocks that a layer offers.
    start: what is equally likely before anything is learnt, of STARTS.
    """

    offered: Tensor
    start: Tensor

    def __init__(
        self,
        space: SearchSpace,
        domains: Sequence[str],
        common: bool = False,
        start: str = "blocks",
    ) -> None:
        super().__init__()
        self.space, self.domains, self.common = space, tuple(domains), common
        most = max(len(layer.blocks) for layer in space.layers)
        likely = torch.zeros(len(space.layers), most)
        for row, layer in zip(likely, space.layers, strict=True):
            row[: len(layer.blocks)] = torch.tensor(STARTS[start](layer))
        self.register_buffer("start", likely, persistent=False)  # [layers, blocks]
        self.register_buffer("offered", likely > 0, persistent=False)
        # of equally likely blocks: zero
        logits = (likely / likely.amax(1, keepdim=True)).log().masked_fill(likely == 0, 0.0)
        rows = 1 if common else len(self.domains)
        self.logits = nn.Parameter(logits.repeat(rows, 1, 1))

    def restrict(self, blocks: Sequence[Collection[Block]]) -> None:
        """Offers only some blocks, given per layer, and zero where the layer can be skipped."""
        for row, layer, kept in zip(self.offered, self.space.layers, blocks, strict=True):
            there = [block == ZERO or block in kept for block in layer.blocks]
            row[: len(there)] &= torch.tensor(there)
        self.start.masked_fill_(~self.offered, 0.0)
        self.start /= self.start.sum(1, keepdim=True)

    def log_probabilities(self) -> Tensor:
        """[domains, layers, blocks]; minus infinity where a layer lacks the block."""
        logits = self.logits.masked_fill(~self.offered, -torch.inf)
        return logits.log_softmax(-1).expand(len(self.domains), -1, -1)

    @torch.no_grad()
    def sample(self, seed: int, step: int) -> Tensor:
        """Draws a path per domain: choices [domains, layers].

        A pure function of (logits, seed, step): equal on all ranks, and after a resume. One
        controller for all draws one path for all.
        """
        probabilities = self.log_probabilities()[: len(self.logits)].exp()
        return self._draw(probabilities, "paths", seed, step)

    @torch.no_grad()
    def sample_start(self, seed: int, step: int, common: bool) -> Tensor:
        """The same as if nothing had been learnt; `common`: one path for all domains."""
        rows = 1 if common or self.common else len(self.domains)
        return self._draw(self.start.expand(rows, -1, -1), "uniform paths", seed, step)

    def _draw(self, weights: Tensor, purpose: str, seed: int, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(stable_key(seed, purpose, step))
        flat = weights.cpu().flatten(0, 1)
        choices = torch.multinomial(flat, 1, generator=generator).view(weights.shape[:2])
        return choices.expand(len(self.domains), -1).contiguous()

    @torch.no_grad()
    def perturbed(self, seed: int, draw: int) -> Tensor:
        """Log probabilities with Gumbel noise, [domains, layers, blocks]: arg-max is a draw.

        Draw 0 has none: its arg-max is the most likely choice. A pure function of (logits, seed,
        draw). One controller for all has one noise for all.
        """
        log_p = self.log_probabilities()[: len(self.logits)].cpu()
        if draw:
            generator = torch.Generator().manual_seed(stable_key(seed, "finalists", draw))
            uniform = torch.rand(log_p.shape, generator=generator).clamp(1e-7, 1 - 1e-7)
            log_p = log_p - (-uniform.log()).log()
        return log_p.expand(len(self.domains), -1, -1)

    def log_probability(self, choices: Tensor) -> Tensor:
        """Log probability of each domain's choices, summed over layers: [domains]."""
        chosen = on_device(choices, self.logits.device)[:, :, None]
        return self.log_probabilities().gather(-1, chosen).squeeze(-1).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy of each domain's choices, mean over layers, in nats: [domains]."""
        log_p = self.log_probabilities()
        return -(log_p.exp() * log_p.masked_fill(~self.offered, 0)).sum(-1).mean(-1)

    def agreement(self) -> Tensor:
        """How likely two domains take the same block, summed over layers: [domains].

        Row d is sum over layers of p_d . mean of the other domains' p, the latter held
        constant: an analytic sharing bonus. Not given in the paper: without it, sharing does
        not emerge from independent controllers. Zero for a single domain.
        """
        p = self.log_probabilities().exp()
        others = (p.sum(0, keepdim=True) - p) / max(len(self.domains) - 1, 1)
        return (p * others.detach()).sum((1, 2))

    @torch.no_grad()
    def best_paths(self) -> dict[str, Path]:
        """The most likely block of every layer, per domain."""
        return self.paths(self.log_probabilities().argmax(-1))

    def choices(self, paths: Mapping[str, Path]) -> Tensor:
        """Paths as choices [domains, layers]."""
        layers = self.space.layers
        return torch.tensor(
            [
                [layer.blocks.index(block) for layer, block in zip(layers, paths[d], strict=True)]
                for d in self.domains
            ]
        )

    def paths(self, choices: Tensor) -> dict[str, Path]:
        """Choices [domains, layers] as paths. The one host synchronisation of a search step."""
        return {
            domain: tuple(
                layer.blocks[choice] for layer, choice in zip(self.space.layers, row, strict=True)
            )
            for domain, row in zip(self.domains, choices.tolist(), strict=True)
        }
