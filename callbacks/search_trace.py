"""What a search would choose, while it goes on."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from mdl.space.architecture import similarity
from mdl.training.search import SearchModule


class SearchTrace(L.Callback):
    """Records how alike each domain's most likely path is to the others', and how clear it is.

    `search/similarity/<domain>`: mean Jaccard score with the other domains.
    `search/margin/<domain>`: probability of the best block over the next, mean over layers.

    interval: steps between two records.
    """

    def __init__(self, interval: int = 20) -> None:
        if interval < 1:
            raise ValueError(f"interval is {interval}; expected steps, 1 or more")
        self.interval = interval

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
        if trainer.global_step % self.interval:
            return
        scores = torch.tensor(similarity(pl_module.controllers.best_paths()))
        others = max(len(scores) - 1, 1)
        p = pl_module.controllers.log_probabilities().detach().exp()
        best = torch.nn.functional.pad(p, (0, 1)).topk(2).values  # a layer may offer one block
        pl_module.record(
            {
                "search/similarity": (scores.sum(1) - 1).cpu() / others,
                "search/margin": (best[..., 0] - best[..., 1]).mean(1).cpu(),
            }
        )
