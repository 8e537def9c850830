"""A training that dies in its middle."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mdl.training.base import MultiDomainModule


@contextmanager
def dying_at(step: int, where: str = "weighted_sum") -> Iterator[None]:
    """A training started within it dies when it comes to that method at the step."""
    original = getattr(MultiDomainModule, where)

    def dying(self: MultiDomainModule, *given: Any, **named: Any) -> Any:
        if self.global_step == step:
            raise RuntimeError("the machine died")
        return original(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MultiDomainModule, where, dying)
        with pytest.raises(RuntimeError, match="the machine died"):
            yield
