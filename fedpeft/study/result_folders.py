"""The results in folders of runs and studies, by study and preset, with the reasons for what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedpeft.errors import FedpeftError, RunError
from fedpeft.study.results import Result, ResultsFile, read_run, resolve_config, select_latest
from fedpeft.study.study_file import PlannedRun, Study, read_study
from fedpeft.wiring.config import read_toml


@dataclass
class ResultFolders:
    """Results and studies found under paths, by study and preset, and messages about skipped items.

    Single runs have an empty study name and an empty preset.
    """

    results: dict[tuple[str, str], list[Result]] = field(default_factory=dict)
    studies: dict[tuple[str, str], Study] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def look(self, path: Path, named: bool = True) -> None:
        """Add the results under a path; if `named` (given by a user), it must contain some.

        Errors are added to `skipped`.
        """
        try:
            if path.is_file():
                self._add_study(path)
            elif (path / "results.jsonl").is_file():
                self._add_study(path / "results.jsonl")
            elif (path / "config.toml").is_file():
                run = replace(read_run(path), folder=str(path.resolve()))
                self.results.setdefault(("", ""), []).append(run)
            elif path.is_dir() and any(_has_results(p) for p in path.iterdir()):
                for inside in sorted(p for p in path.iterdir() if _has_results(p)):
                    self.look(inside, named=False)
            elif path.is_dir() and (path / "runs").is_dir():
                self.look(path / "runs")
            elif named:
                what = "holds neither a run nor a study" if path.exists() else "does not exist"
                raise RunError(f"FP5210 {path} {what}")
        except FedpeftError as error:
            self.skipped.append(str(error))

    def _add_study(self, path: Path) -> None:
        file = ResultsFile(path)
        results = file.read()
        if not results:
            raise RunError(f"FP5211 {path} holds no result")
        if file.cut_short:
            self.skipped.append(f"the last line of {path} was cut short and is left out")
        sorted_out: dict[tuple[str, str], list[Result]] = {}
        for result in select_latest(results):
            sorted_out.setdefault((result.study, result.preset), []).append(result)
        for (name, preset), matching in sorted_out.items():
            study = _find_study(path.parent, name, preset, matching)
            if study is not None:
                self.studies[name, preset] = study
                described = match_to_study(study, matching)
                if len(described) < len(matching):
                    self.skipped.append(
                        f"{len(matching) - len(described)} results of {path} are left out: {study.path} now gives "
                        "their labels to other settings"
                    )
                matching = described
            if matching:
                self.results.setdefault((name, preset), []).extend(matching)


def match_to_study(study: Study, results: Sequence[Result]) -> list[Result]:
    """Return the results with the grid points that the study's file gives their configurations today.

    Labels and axes may have changed since. A finished result whose configuration the study no longer describes keeps
    its own point, unless another run now has that point. Then it is left out, and so is a failure that is no longer
    planned.
    """
    runs = study.plan_runs()
    points, taken = _find_points(runs, results), [dict(run.point) for run in runs]
    matched = []
    for result, point in zip(results, points, strict=True):
        if point is not None:
            matched.append(replace(result, point=point))
        elif result.is_finished and dict(result.point) not in taken:
            matched.append(result)
    return matched


def _find_points(runs: Sequence[PlannedRun], results: Sequence[Result]) -> list[dict[str, str] | None]:
    """Return each result's point in the grid of a study's runs; None if it has none."""
    points = {run.config: dict(run.point) for run in runs}
    anywhere = {replace(config, dtype="auto"): point for config, point in points.items()}
    if len(anywhere) == len(points):  # `auto` may resolve differently on another machine
        points |= anywhere
    configs = [resolve_config(result.config) for result in results]
    return [(points.get(c) or points.get(replace(c, dtype="auto"))) if c else None for c in configs]


def _has_results(path: Path) -> bool:
    return (path / "config.toml").is_file() or (path / "results.jsonl").is_file()


def _find_study(folder: Path, name: str, preset: str, results: Sequence[Result]) -> Study | None:
    """Return the study's file beside its results or above them, under any name; None if none describes them.

    If several files have the study's name, the one that describes most of these results wins.
    """
    best, most = None, 0
    for place in (folder, folder.parent):
        named = sorted(file for file in place.glob("*.toml") if _is_of(file, name))
        for file in sorted(named, key=lambda file: file.name != "study.toml"):
            try:
                study = read_study(file, preset)
            except FedpeftError:
                continue
            described = len(results) - _find_points(study.plan_runs(), results).count(None)
            if study.name == name and described > most:
                best, most = study, described
    return best


def _is_of(file: Path, name: str) -> bool:
    """Return whether a file may be this study's, without loading the plugins that it names."""
    try:
        content = read_toml(file)
    except FedpeftError:
        return False
    return bool((content.get("name") or file.resolve().parent.name) == name)
