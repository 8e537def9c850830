"""The W&B dashboard, as its library serialises it, and the command that makes it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import wandb

from mdl import dashboard
from mdl.errors import UserError
from mdl.results.metrics import read_metrics
from tests.results.wandb_service import Service


def panels_of(specification: str) -> dict[str, dict[str, Any]]:
    """Title -> settings of each panel."""
    sections = json.loads(specification)["section"]["panelBankConfig"]["sections"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    return {panel["chartTitle"]: panel for panel in panels}


def test_the_printed_specification_has_what_a_run_records(
    finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.main(["mdl", "--print"])
    panels = panels_of(capsys.readouterr().out)
    drawn = {of["metricRegex"] for of in panels.values() if "metricRegex" in of}
    assert {"^val/accuracy/", "^train/loss/", "^train/domain_weight/", "^search/entropy/"} <= drawn
    assert "^search/similarity/" in drawn
    shown = [key for of in panels.values() for key in of.get("mediaKeys", [])]
    assert shown == ["architecture/similarity", "architecture/path_map"]
    lines = [of for of in panels.values() if "metricRegex" in of]
    assert all(of["xAxis"] == "trainer/global_step" and of["useMetricRegex"] for of in lines)
    recorded = {key for line in read_metrics(finished_run / "metrics.jsonl") for key in line}
    for key in recorded - {"step"}:
        assert any(re.match(pattern, key) for pattern in drawn), key


def test_the_command_sends_the_specification_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service()
    service.start()
    wandb.teardown()
    for key, value in service.environment.items():
        monkeypatch.setenv(key, value)
    dashboard.main(["mine", "--entity", "me"])
    (view,) = service.views
    assert (view["entityName"], view["projectName"]) == ("me", "mine")
    assert "training loss" in panels_of(view["spec"])
    assert f"http://127.0.0.1:{service.port}/me/mine" in capsys.readouterr().out
    service.stop()
    wandb.teardown()


def test_without_a_login_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    with pytest.raises(UserError, match="Nobody is logged in to W&B"):
        dashboard.main(["mine"])
