"""Says in words, while a search goes on, that it goes wrong."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mdl.data.datamodule import MultiDomainData
from mdl.results.chance import at_chance
from mdl.space.architecture import similarity
from mdl.training.random_search import RandomSearchModule
from mdl.training.search import SearchModule

_log = logging.getLogger(__name__)


class SearchWatch(L.Callback):
    """Warns, once each, of a collapse onto one path and of domains at chance.

    A collapse: the most likely paths of all domains are one, or almost (mean Jaccard score with
    the others above `alike`), although each has its own controller. At chance: a domain's
    accuracy over all rewards since the last look is not above that of always answering its most
    frequent class.

    interval: steps between two looks, from the end of the warm-up on.
    """

    def __init__(self, interval: int = 100, alike: float = 0.95) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}; expected steps, 1 or more")
        self.interval, self.alike = interval, alike
        self._accuracy: Tensor | None = None
        self._images = torch.zeros(0)
        self._warned: set[str] = set()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not isinstance(pl_module, SearchModule):
            return  # finalists have no controllers
        step = trainer.global_step
        if step <= pl_module.delay:
            return
        self._count(pl_module, batch["held_out"], trainer.world_size)
        if (step - pl_module.delay) % self.interval == 0:
            self._look_at_paths(pl_module, step)
            self._look_at_accuracy(trainer, pl_module, step)

    def _count(self, module: SearchModule, batch: Any, ranks: int) -> None:
        # a mean over ranks; of several paths of a step too, which answer the same images
        accuracy = module.search_records["search/accuracy"].detach()
        images = torch.tensor([float(len(batch[domain][1])) for domain in module.domains])
        images *= ranks
        if self._accuracy is None:
            self._accuracy, self._images = torch.zeros_like(accuracy), torch.zeros_like(images)
        self._accuracy += accuracy * images.to(accuracy.device)
        self._images += images

    def _look_at_paths(self, module: SearchModule, step: int) -> None:
        count = len(module.domains)
        of_controllers = not isinstance(module, RandomSearchModule)
        if count < 2 or module.controllers.common or not of_controllers:
            return
        scores = torch.tensor(similarity(module.controllers.best_paths()))
        alike = float((scores.sum() - count) / (count * (count - 1)))
        if alike > self.alike:
            self._warn(
                "collapse",
                f"step {step}: the search collapses onto one path: the domains' most likely paths "
                f"have a mean Jaccard score of {alike:.2f}. Lower search.sharing, raise "
                "search.target.params, or take it for what it is: multi-head NAS.",
            )

    def _look_at_accuracy(self, trainer: L.Trainer, module: SearchModule, step: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._accuracy is None or not isinstance(data, MultiDomainData):
            return
        right, images = self._accuracy.tolist(), self._images.tolist()
        for domain, hits, count in zip(module.domains, right, images, strict=True):
            guessing = data.domains[domain].split("train").majority
            if at_chance(hits / count, guessing, int(count)):
                self._warn(
                    domain,
                    f"step {step}: domain '{domain}' is at chance ({100 * hits / count:.1f} %, "
                    f"guessing {100 * guessing:.1f} %): its rewards say nothing of its paths. "
                    "Train the super-network longer, or with search.block_weights=tied.",
                )
        self._accuracy = None

    def _warn(self, matter: str, sentence: str) -> None:
        if matter not in self._warned:
            self._warned.add(matter)
            _log.warning(sentence)
