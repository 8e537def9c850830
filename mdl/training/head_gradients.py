"""Gradients of single domains' losses at the last weights that all domains share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mdl.networks.blocks import Company, ConvNormAct, DomainBatchNorm
from mdl.networks.multipath import HEAD, MultiPathNetwork, Node


class HeadGradients:
    """Gradient of each domain's loss with respect to the head convolution's weights.

    With batch norm per domain, a domain's loss reaches these weights through its own images only.
    So one pass back to the convolution's output serves all domains: domain d's part of the
    gradient there, times its part of the convolution's input, is its gradient of the weights (the
    convolution is 1 x 1). With shared batch norm every loss reaches them through all images, and
    each takes a pass of its own.

    network: whose nodes are shared; its training passes are watched from now on.
    """

    def __init__(self, network: MultiPathNetwork) -> None:
        head = network.nodes[Node(len(network.space.layers), HEAD).key]
        assert isinstance(head, ConvNormAct)
        self.domains = network.domains
        self.weight = head.conv.weight
        self.apart = isinstance(head.bn, DomainBatchNorm)
        # of the pass that was watched, one entry per call of the node
        self._features: list[tuple[Tensor, Tensor]] = []
        self._companies: list[Company] = []
        head.conv.register_forward_hook(self._note_features)
        head.bn.register_forward_pre_hook(self._note_company)

    def of(self, losses: Tensor) -> Tensor:
        """losses: [domains], of the last pass -> [domains, out, in]. Their graph is kept."""
        features, companies = self._features, self._companies
        self._features, self._companies = [], []
        if not self.apart:
            each = [torch.autograd.grad(x, self.weight, retain_graph=True)[0] for x in losses]
            return torch.stack(each).flatten(2)
        outputs = [output for _, output in features]
        at_outputs = torch.autograd.grad(losses.sum(), outputs, retain_graph=True)
        found: dict[str, Tensor] = {}
        for (x, _), gradient, company in zip(features, at_outputs, companies, strict=True):
            parts = zip(gradient.split(company.counts), x.split(company.counts), strict=True)
            each = [torch.einsum("nohw,nihw->oi", g, of) for g, of in parts]
            found |= zip(company.domains, each, strict=True)
        return torch.stack([found[domain] for domain in self.domains]).float()

    def _note_features(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if torch.is_grad_enabled():  # not what rewards and evaluations compute
            self._features.append((inputs[0].detach(), output))

    def _note_company(self, module: nn.Module, inputs: tuple[Any, Company]) -> None:
        if torch.is_grad_enabled():
            self._companies.append(inputs[1])
