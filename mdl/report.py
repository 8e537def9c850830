"""What runs cost, gained and found: a page, its pictures, and a table.

    python -m mdl.report RUN [RUN ...] [--pair DOMAIN DOMAIN]
    python -m mdl.report COMPARISON [--pair DOMAIN DOMAIN]
    python -m mdl.report RUN [RUN ...] --wandb     sends W&B what it lacks of them, and ends

RUN is the run folder of a search or a retraining, e.g. runs/mpnas_retrain; a retraining's search is
shown too. COMPARISON is the folder of a comparison, e.g. runs/miniature, finished or not. Writes
report.html (one file, opens anywhere), report.md and figures/ into the first one. Training is not
touched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mdl.command import run_command
from mdl.comparison.comparison_folder import RECORD, ComparisonFolder
from mdl.console import phase_bar
from mdl.errors import UserError, nearest
from mdl.results.chance import chance_remarks
from mdl.results.compared import Compared
from mdl.results.comparison_page import build_comparison_page, comparison_tables, first_run
from mdl.results.network_tables import bundle_table, network_table
from mdl.results.page import Page, build_page
from mdl.results.run import Run, read_runs, read_searches
from mdl.run_folder import RunFolder
from mdl.whole_files import write_text


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.wandb:
        for path in options.runs:
            print(send_to_wandb(path))
        return
    comparisons = [path for path in options.runs if (path / RECORD).is_file()]
    if comparisons and len(options.runs) > 1:
        raise UserError(f"{comparisons[0]} is a comparison, which is reported by itself.")
    if comparisons:
        files = report_comparison(ComparisonFolder(comparisons[0]), options.pair)
    else:
        files = report_runs(read_runs(options.runs), options.pair)
    for file in files:
        print(file)
    print(f"Next: open {files[0]} in a browser")


def report_runs(runs: Sequence[Run], pair: Sequence[str] | None) -> list[Path]:
    """Writes and prints what is to be said of some runs; gives what was written."""
    page = build_page(runs, read_searches(runs), _check_pair(pair, runs[0]))
    files = write_page(page, runs[0].folder)
    network_table(runs).print()
    bundle_table(runs[0]).print()
    for remark in chance_remarks(runs):
        print(remark)
    return files


def report_comparison(folder: ComparisonFolder, pair: Sequence[str] | None) -> list[Path]:
    """Writes and prints what is to be said of a comparison, as far as it is."""
    compared = Compared.read(folder)
    page = build_comparison_page(compared, _check_pair(pair, first_run(compared)))
    files = write_page(page, folder)
    for table in comparison_tables(compared):
        table.print()
    for remark in compared.missing:
        print(remark)
    return files


def send_to_wandb(path: Path) -> str:
    """Sends W&B the steps of a run that it lacks; says how many, and where they are.

    Raises UserError where there is no service to send them to.
    """
    # here, as no other report needs them and they take seconds to import
    from mdl.results.wandb_run import choose_mode, first_line
    from mdl.trainer import open_wandb

    folder = RunFolder.find(path)
    if (mode := choose_mode("auto")) != "online":
        raise UserError(
            f"{path} cannot be sent to W&B: its mode is {mode}. Log in (wandb login, or "
            "WANDB_API_KEY) and set WANDB_MODE=online."
        )
    recipe = folder.recipe()
    is_finished = folder.is_finished(recipe.phase, recipe.trainer.max_steps)
    run = open_wandb(recipe, folder, mode, strict=True)
    try:
        url = run.experiment.url
        run.close(is_finished, folder.architecture_file)
    except Exception as error:  # of W&B, its process or the network: many kinds
        raise UserError(
            f"W&B did not take all of {path}: {first_line(error)}. Nothing is lost: "
            "the same command sends what is missing."
        ) from error
    return f"{path}: {run.sent} steps sent, now whole at {url}"


def write_page(page: Page, folder: RunFolder | ComparisonFolder) -> list[Path]:
    """Writes the pictures, then the pages that show them; gives the pages and the folder."""
    with phase_bar("pictures", len(page.pictures)) as advance:
        for picture in page.pictures:
            picture.write(folder.figures_dir)
            advance(1)
    pages = [folder.path / f"report.{kind}" for kind in ("html", "md")]
    for file in pages:
        write_text(file, page.render(file.suffix.removeprefix(".")))
    return [*pages, folder.figures_dir]


def _check_pair(pair: Sequence[str] | None, run: Run) -> tuple[str, str] | None:
    """Raises UserError where the pair is not two different domains of the run."""
    if pair is None:
        return None
    known = list(run.architecture.domains)
    for domain in pair:
        if domain not in known:
            raise UserError(
                f"--pair names '{domain}', which is no domain of {run.label}; "
                f"{nearest(domain, known)}"
            )
    one, other = pair
    if one == other:
        raise UserError(f"--pair names '{one}' twice; expected two domains of {run.label}.")
    return one, other


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mdl.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--pair", nargs=2, metavar="DOMAIN")
    parser.add_argument("--wandb", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
