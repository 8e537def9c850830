"""A module's own steps without Lightning: what trainer, loggers and callbacks add to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mdl.training.base import MultiDomainModule


def bare(module: MultiDomainModule) -> MultiDomainModule:
    """The module with its optimizer and schedule at hand, as a trainer would give them.

    `training_step` then runs as it is; steps are counted, nothing is recorded or saved.
    """
    configured = module.configure_optimizers()
    if isinstance(configured, dict):
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    else:
        optimizer, schedule = configured, None
    kind = type(module)

    class Bare(kind):  # type: ignore[valid-type,misc]
        steps = 0

        @property
        def global_step(self) -> int:
            return Bare.steps

        records_now = False

        def optimizers(self) -> Any:
            return optimizer

        def lr_schedulers(self) -> Any:
            return schedule

        def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward(*args, **kwargs)

        def training_step(self, *args: Any) -> None:
            super().training_step(*args)
            Bare.steps += 1

    module.__class__ = Bare
    return module
