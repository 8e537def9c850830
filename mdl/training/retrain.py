"""The training of a derived network from scratch, all domains in each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from mdl.data.transforms import Batch, images_of, labels_of
from mdl.networks.blocks import DomainBatchNorm, domain_key
from mdl.networks.multipath import MultiPathNetwork
from mdl.space.search_space import Path
from mdl.training.accuracy import DomainAccuracy
from mdl.training.average import WeightAverage
from mdl.training.base import MultiDomainModule
from mdl.training.gradient_graph import GradientGraph, can_capture


class RetrainModule(MultiDomainModule):
    """Trains the network on fixed paths and evaluates the average of its weights.

    Every parameter that is trained is used in every step, so plain DDP serves.

    network: the derived network. paths: its architecture.
    frozen: whether the nodes stay as they are, running statistics included, and only the heads
    are trained. A step then computes no gradient but the heads'.
    added: the domains that are trained, to networks of others that are not: nodes that the others
    use rest, but for what they hold for the added ones alone (batch norm per domain), and so do
    the others' heads. The others' outputs stay the same to the bit. Training batches are then of
    these domains alone. Empty: all are trained.
    ema_decay: of the weights' moving average, which is what is evaluated (see `WeightAverage`).
    cuda_graph: whether a GPU is given each step's passes as a whole, where that is possible: on one
    rank, without a balancer, which has a say within the step.
    """

    def __init__(
        self,
        network: MultiPathNetwork,
        paths: Mapping[str, Path],
        *,
        frozen: bool = False,
        added: Sequence[str] = (),
        ema_decay: float,
        cuda_graph: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(network, **base)
        self.paths, self.cuda_graph = dict(paths), cuda_graph
        self._graph: GradientGraph[Tensor] | None = None
        self.frozen = frozen
        self.added = tuple(added)
        self.trained = self.added or self.domains
        network.nodes.requires_grad_(not frozen).train(not frozen)
        if self.added:
            rest_all_but(network, self.added)
        self.average = WeightAverage(network, ema_decay, lambda: self.global_step)
        self.evaluation = DomainAccuracy(self.domains)
        self.evaluated_split = "test"  # what a test pass records its scores as
        self.evaluated_domains: Sequence[str] = self.domains  # those that have images of a split
        self.counted: dict[str, int] = {}  # images of each domain that the last evaluation counted

    @property
    def phase(self) -> str:
        return "retraining"

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen:
            self.network.nodes.eval()
        return self

    def compile_network(self) -> None:
        """Compiles the training pass, as one graph, for the batches of the first step.

        Evaluation, whose last batches are of any size, stays as it is.
        """
        network: Any = self.network
        network.follow = torch.compile(network.follow, fullgraph=True, dynamic=False)

    def inherit(self, backbone: MultiPathNetwork, like: Mapping[str, str]) -> None:
        """Begins with the weights of another network (`MultiPathNetwork.inherit`)."""
        self.network.inherit(backbone, like)
        self.average.module.load_state_dict(self.network.state_dict())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.weight_step(batch, self.paths)
        self.average.update_parameters(self.network)
        if self.records_now:
            self.record_training()

    def set_gradients(self, batch: Batch, paths: Mapping[str, Path]) -> Tensor:
        if not self.cuda_graph or self.balancer is not None or not can_capture(self.device):
            return super().set_gradients(batch, paths)
        if self._graph is None:
            self._graph = GradientGraph(partial(super().set_gradients, paths=paths))
        self._graph.launch(batch)
        return self._graph.result()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> None:
        if batch:  # towards the end another rank may still have images, this one none
            self.evaluation.update(self.average_logits(batch), labels_of(batch))

    def average_logits(self, batch: Batch) -> dict[str, Tensor]:
        """Domain -> logits [b, classes] by the averaged weights."""
        logits: dict[str, Tensor] = self.average.module(images_of(batch), self.paths)
        return logits

    def on_validation_epoch_end(self) -> None:
        self._record_evaluation("val")
        # where callbacks such as Lightning's EarlyStopping look
        seen = {name: of for name, of in self.records.items() if name.startswith("val/")}
        self.log_dict(seen, logger=False)

    def on_test_epoch_end(self) -> None:
        # the validation split has its curve; its score at the end is of the best checkpoint
        self._record_evaluation(self.evaluated_split, log=self.evaluated_split == "test")

    def _record_evaluation(self, split: str, log: bool = True) -> None:
        scores = self.evaluation.compute()
        images = scores.pop("images").reshape(-1).tolist()
        self.counted = dict(zip(self.domains, images, strict=True))
        rows = [row for row, domain in enumerate(self.domains) if domain in self.evaluated_domains]
        self.record(
            {f"{split}/{quantity}": of.reshape(-1)[rows] for quantity, of in scores.items()},
            log,
            [self.domains[row] for row in rows],
        )
        self.evaluation.reset()


def rest_all_but(network: MultiPathNetwork, added: Sequence[str]) -> None:
    """Lets only what is of some domains alone be trained.

    Rows of other domains in a table of batch norm get zero gradients, and stay as they are.
    """
    network.requires_grad_(False)
    for node, users in network.users.items():
        if set(users) <= set(added):
            network.nodes[node.key].requires_grad_(True)
        elif set(users) & set(added):
            for module in network.nodes[node.key].modules():
                if isinstance(module, DomainBatchNorm):
                    module.requires_grad_(True)
    for domain in added:
        network.heads[domain_key(domain)].requires_grad_(True)
