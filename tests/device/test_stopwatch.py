import pytest

from mdl.device import stopwatch
from mdl.device.stopwatch import milliseconds


def test_calls_take_turns_and_the_undisturbed_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        disturbed = len(order) % 7 == 0
        now[0] += seconds + disturbed

    monkeypatch.setattr(stopwatch, "perf_counter", lambda: now[0])
    calls = {"fast": lambda: call("fast", 0.001), "slow": lambda: call("slow", 0.003)}
    took = milliseconds(calls, 20)
    assert took == {"fast": pytest.approx(1), "slow": pytest.approx(3)}
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert turns == ["fast", "slow"] * 3  # warming up, and two turns of ten
