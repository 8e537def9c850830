"""The W&B dashboard of a project: accuracy per domain, losses, domain weights, search, pictures.

    python -m mdl.dashboard PROJECT [--entity ENTITY]
    python -m mdl.dashboard PROJECT --print        shows its specification and asks no service

PROJECT is what recipes name as wandb.project; ENTITY is your user or team, by default the one that
W&B takes for you. Each call makes a new view of the project. Needs pip install '.[dashboard]'.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mdl.command import run_command
from mdl.errors import UserError


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        from mdl.results.workspace import build_workspace, specification
    except ModuleNotFoundError as error:
        if error.name != "wandb_workspaces":
            raise
        raise UserError(
            "The dashboard needs the package wandb-workspaces: "
            "pip install -c constraints.txt -e '.[dashboard]'"
        ) from error
    if options.print:
        print(specification(build_workspace(options.entity or "", options.project)))
        return
    import wandb

    from mdl.results.wandb_run import first_line

    if not wandb.login(prompt=False, verify=False):
        raise UserError(
            "Nobody is logged in to W&B; expected a login (wandb login, or WANDB_API_KEY). "
            "--print shows the dashboard without."
        )
    try:
        entity = options.entity or wandb.Api().default_entity or ""
        made = build_workspace(entity, options.project).save()
    except Exception as error:  # of W&B, its answers or the network: many kinds
        raise UserError(
            f"W&B did not take the dashboard of {options.project}: {first_line(error)}. "
            "Check the project, --entity and the network, and say it again."
        ) from error
    print(made.url)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("project", metavar="PROJECT")
    parser.add_argument("--entity")
    parser.add_argument("--print", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
