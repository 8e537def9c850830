"""The report's sections, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from mdl.results.chance import chance_remarks
from mdl.results.decathlon_score import score_table, split_remarks
from mdl.results.network_tables import bundle_table, network_table, parts_table, published_table
from mdl.results.picture import Picture
from mdl.results.pictures import (
    accuracy_pictures,
    curve_pictures,
    map_picture,
    overview_picture,
    pair_pictures,
    similarity_picture,
)
from mdl.results.provenance import commands, origin_table, space_table
from mdl.results.run import Run
from mdl.results.table import Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    remarks: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A report. overview: the picture for whoever shows only one; not on the page."""

    title: str
    lead: str
    sections: list[Section]
    overview: Picture | None

    @property
    def pictures(self) -> list[Picture]:
        shown = [picture for section in self.sections for picture in section.pictures]
        return [*shown, self.overview] if self.overview else shown

    def render(self, kind: str) -> str:
        """The text of a 'html' or 'md' page."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template(f"report.{kind}").render(page=self)


def build_page(
    runs: Sequence[Run], searches: Mapping[str, Run], pair: tuple[str, str] | None
) -> Page:
    """The report of runs, the first of which it is about.

    searches: label of a retraining -> its search.
    pair: the two domains to show side by side; None for the most and the least alike.
    """
    every = list({run.label: run for run in [*runs, *searches.values()]}.values())
    sections = [
        _cost_section(runs),
        _accuracy_section(runs),
        *_path_sections(runs, pair),
        _curves_section(every),
        _origin_section(runs, searches, every),
    ]
    title = ", ".join(run.label for run in runs)
    return Page(title, _lead(runs[0]), sections, overview_picture(runs))


def _lead(run: Run) -> str:
    comparison, domains = run.comparison, len(run.num_classes)
    ratio = run.cost.parameters.total / comparison.separate.parameters.total
    lead = f"{run.label}: one network for {domains} domain{'s' if domains > 1 else ''}"
    lead += f" with {run.cost.parameters.total:,} parameters, {ratio:.2f}x those of its bundle"
    lead += " (the same paths, nothing shared)"
    for split in ("test", "val"):
        if split in run.scores:
            return f"{lead}; mean top-1 accuracy {100 * run.scores[split]['mean']:.1f}% ({split})."
    return f"{lead}; it has no scores yet."


def _cost_section(runs: Sequence[Run]) -> Section:
    tables = [network_table(runs), bundle_table(runs[0]), published_table(), parts_table(runs)]
    return Section("What it costs and what it gains", tables=tables)


def _accuracy_section(runs: Sequence[Run]) -> Section:
    remarks = chance_remarks(runs)
    for run in runs:
        if run.scores:
            continue
        if run.is_finished:
            what = "was trained on all splits that have labels; answer the test images with "
            what += f"python -m mdl.evaluate {run.folder.path} --submission results.zip"
        elif run.is_retraining:
            what = f"is not finished. Go on with it: {run.folder.go_on_command()}"
        else:
            what = "is a search; accuracies come with the retraining of what it found."
        remarks.append(f"{run.label} has no scores: it {what}")
    remarks += split_remarks(runs)
    score = score_table(runs)
    tables = [] if score is None else [score]
    return Section("Accuracy per domain", remarks, accuracy_pictures(runs), tables)


def _path_sections(runs: Sequence[Run], pair: tuple[str, str] | None) -> list[Section]:
    """Of every architecture once, however many runs have it."""
    alike = Section("How alike the paths are")
    maps = Section("The multi-path map")
    pairs = Section("Two domains side by side")
    seen: list[Run] = []
    for run in runs:
        if any(run.architecture.paths == other.architecture.paths for other in seen):
            continue
        ending = f"_{run.label}" if seen else ""
        seen.append(run)
        maps.pictures.append(map_picture(run, ending))
        if len(run.num_classes) > 1:
            alike.pictures.append(similarity_picture(run, ending))
            pairs.pictures.extend(pair_pictures(run, pair, ending))
    return [section for section in (alike, maps, pairs) if section.pictures]


def _curves_section(every: Sequence[Run]) -> Section:
    pictures = [picture for run in every for picture in curve_pictures(run)]
    missing = [
        f"{run.label} has no metrics." for run in every if not run.folder.metrics_file.is_file()
    ]
    return Section("How it went: balancing, controllers, accuracy", missing, pictures)


def _origin_section(
    runs: Sequence[Run], searches: Mapping[str, Run], every: Sequence[Run]
) -> Section:
    spaces = {run.architecture.space.fingerprint: run.architecture.space for run in every}
    tables = [origin_table(every), *(space_table(space) for space in spaces.values())]
    remarks = [
        f"{search.label} has found other paths since {label} was made of it."
        for label, search in searches.items()
        if any(
            run.label == label
            and run.trains_searched_paths
            and run.architecture.paths != search.architecture.paths
            for run in runs
        )
    ]
    return Section("Where it comes from", remarks, [], tables, commands(runs, searches))
