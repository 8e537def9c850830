"""The W&B dashboard of a project, as code: which panels it has, of which records."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.workspaces as workspaces
from wandb_workspaces.reports.v2.interface import LinePlot, MediaBrowser

from mdl.results.wandb_run import STEP

NAME = "mdl"

# section -> title of a panel -> quantity whose records it draws, one line per domain and run
_LINES = {
    "Accuracy": {
        "validation accuracy": "val/accuracy",
        "test accuracy": "test/accuracy",
        "accuracy of drawn paths": "search/accuracy",
    },
    "Losses": {
        "training loss": "train/loss",
        "validation loss": "val/loss",
        "test loss": "test/loss",
    },
    "Balancing": {"domain weights (ABDP or another method)": "train/domain_weight"},
    "Search": {
        "entropy of the controllers": "search/entropy",
        "reward": "search/reward",
        "Jaccard score with the other domains": "search/similarity",
        "margin of the best block": "search/margin",
    },
    "Speed": {"images and seconds": "throughput"},
}
_PICTURES = {
    "Jaccard scores of the paths": "architecture/similarity",
    "map of the paths": "architecture/path_map",
}


def build_workspace(entity: str, project: str) -> workspaces.Workspace:
    """The dashboard; domains are found by their names in the records, so it fits any data."""
    sections = [
        workspaces.Section(
            name=section,
            is_open=True,
            panels=[
                LinePlot(title=title, x=STEP, metric_regex=f"^{quantity}/")
                for title, quantity in of.items()
            ],
        )
        for section, of in _LINES.items()
    ]
    pictures: list[Any] = [
        MediaBrowser(title=title, media_keys=[key]) for title, key in _PICTURES.items()
    ]
    sections.insert(4, workspaces.Section(name="Architecture", is_open=True, panels=pictures))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
    )


def specification(workspace: workspaces.Workspace) -> str:
    """What is sent to W&B, as the library serialises it: JSON."""
    made: str = workspace._to_model().spec.model_dump_json(
        by_alias=True, exclude_none=True, indent=1
    )
    return made
