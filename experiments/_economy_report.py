"""What students of few samples lost against full distillation: tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import _grid, _student
from experiments._economy import Job, Outcome
from fdjax import reports

Kind = tuple[str, float, int]
"""Method, share and refresh."""


def best_confidence(outcomes: Mapping[Job, Outcome], task: str, kind: Kind) -> str:
    """The confidence whose students are best on the images held out; the first of equals."""
    found: dict[str, list[float]] = {}
    for job, value in outcomes.items():
        if (job.task, (job.method, job.share, job.refresh)) == (task, kind):
            found.setdefault(job.confidence, []).append(value.validation)
    return max(found, key=lambda confidence: float(np.mean(found[confidence])))


def summary(outcomes: Mapping[Job, Outcome]) -> list[dict[str, Any]]:
    """One row for each task, method, share and refresh, with the confidence that was chosen."""
    kinds = dict.fromkeys((job.task, (job.method, job.share, job.refresh)) for job in outcomes)
    rows = []
    for task, kind in kinds:
        confidence = best_confidence(outcomes, task, kind)
        method, share, refresh = kind
        mine = [
            job
            for job in outcomes
            if (job.task, job.method, job.share, job.confidence, job.refresh)
            == (task, method, share, confidence, refresh)
        ]
        whole: dict[str, Any] = {"method": "none", "share": 1.0, "confidence": "", "refresh": 0}
        full = [outcomes[job._replace(**whole)] for job in mine]
        own = [outcomes[job] for job in mine]
        gains = [a.test - b.test for a, b in zip(own, full, strict=True)]
        gain, error = _grid.mean_and_error(gains)
        rows.append(
            {
                "task": task,
                "method": method,
                "share": share,
                "refresh": refresh,
                "confidence": confidence,
                "used": float(np.mean([a.used / b.used for a, b in zip(own, full, strict=True)])),
                "test": [one.test for one in own],
                "gains": gains,
                "gain": gain,
                "error": error,
                "seconds": float(np.median([one.seconds for one in own])),
                # Each against the full run of its seed, which stood next to it.
                "time": float(
                    np.median([a.seconds / b.seconds for a, b in zip(own, full, strict=True)])
                ),
            }
        )
    return rows


def label(row: Mapping[str, Any]) -> str:
    """Method, and how seldom it looks, where not at every step."""
    return f"{row['method']}, look every {row['refresh']}" if row["refresh"] > 1 else row["method"]


def points(gain: float, error: float) -> str:
    """A difference in accuracy as a cell of a table."""
    text = f"{100 * gain:+.1f}"
    return text if np.isnan(error) else f"{text} ± {100 * error:.1f}"


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each method of a share: what it lost against the full run on each task."""
    lines: dict[str, dict[str, Any]] = {}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = label(row)
        line = lines.setdefault(name, {"method": name})
        line[row["task"]] = points(row["gain"], row["error"]) + (
            f" ({row['confidence']})" if row["confidence"] else ""
        )
        found.setdefault(name, []).append(row)
    for name, mine in found.items():
        lines[name]["mean"] = points(float(np.mean([row["gain"] for row in mine])), np.nan)
        lines[name]["used"] = float(np.mean([row["used"] for row in mine]))
        lines[name]["time"] = float(np.mean([row["time"] for row in mine]))
    return list(lines.values())


def report(command: str, folder: Path, results: Mapping[str, Any]) -> None:
    """Prints the tables and writes report.md with its pictures."""
    rows = results["rows"]
    full = [row for row in rows if row["method"] == "none"]
    whole = [
        {
            "task": row["task"],
            "full distillation": _student.mean_and_spread(row["test"]),
            "seconds": row["seconds"],
            "samples of some significance": results["significant"][row["task"]],
        }
        for row in full
    ]
    sections: list[str | Path] = [
        f"`{command}`",
        "Test accuracy of full distillation, mean ± standard deviation over seeds, and median "
        "seconds of its training loop.",
        reports.table(whole),
        "Below: points of test accuracy above full distillation of the same seed, mean ± standard "
        "error over seeds, and in brackets the confidence chosen on images held out; the share of "
        "the full run's samples that was back-propagated, and of its time (median over seeds).",
    ]
    reports.print_table(whole, "Full distillation")
    for share in dict.fromkeys(row["share"] for row in rows):
        mine = [row for row in rows if row["share"] == share and row["method"] != "none"]
        if mine:
            lines = table_of(mine)
            reports.print_table(lines, f"At a share of {share:g}")
            sections += [f"## At a share of {share:g}", reports.table(lines)]
    if any(row["method"] != "none" for row in rows):
        sections += pictures(folder, rows)
    reports.write(folder, "Data efficiency", sections)
    print(f"report: {folder / 'report.md'}")


def pictures(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Accuracy against samples and against time, all tasks and seeds together."""
    drawn = []
    for name, what in (("used", "samples back-propagated"), ("time", "time of the training loop")):
        curves: dict[str, list[tuple[float, list[float]]]] = {}
        for row in rows:
            if row["method"] == "none":
                continue
            mine = [
                other
                for other in rows
                if label(other) == label(row) and other["share"] == row["share"]
            ]
            if mine[0] is row:
                place = 100 * float(np.mean([other[name] for other in mine]))
                values = [100 * float(np.mean(by_seed)) for by_seed in _by_seed(mine)]
                curves.setdefault(label(row), []).append((place, values))
        sorted_curves = {key: sorted(value) for key, value in curves.items()}
        drawn.append(
            reports.plot_curves(
                folder / f"by_{name}.png",
                sorted_curves,
                "points above full distillation",
                xlabel=f"% of the full run's {what}",
            )
        )
    return drawn


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    return [list(seed) for seed in zip(*(row["gains"] for row in rows), strict=True)]
