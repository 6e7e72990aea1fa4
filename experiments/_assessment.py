"""Scores of a faculty with what is known of their uncertainty, and what to say of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fdjax import checks, metrics, scores, selection

SURE = 0.95
"""Level of the intervals, and the probability from which one teacher counts as better."""

DRAWS = 20
"""Random parts of the examples at each size of a budget curve."""


class Judged(NamedTuple):
    """One score of every teacher.

    Attributes:
        scores: NaN where undefined.
        margins: Half of each interval; NaN where unknown.
        odds: Probability that the first truly is better than each; NaN where unknown.
        p_values: NaN where labels were not permuted.
    """

    scores: np.ndarray
    margins: np.ndarray
    odds: np.ndarray
    p_values: np.ndarray


def judge(
    function: scores.ScoreFn,
    faculty: selection.Faculty,
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int,
    resamples: int,
    nulls: int,
    **settings: Any,
) -> Judged:
    """Scores a faculty, with intervals where every class has two examples or more."""
    once = np.bincount(labels[labels >= 0], minlength=num_classes).min() < 2
    if resamples == 0 or once:
        values = np.asarray(
            selection.score_faculty(function, faculty, labels, num_classes, **settings)
        )
        return Judged(values, *(np.full(len(values), np.nan) for _ in range(3)))
    found = selection.resample(
        function,
        faculty,
        labels,
        num_classes,
        key=jax.random.key(seed),
        resamples=resamples,
        nulls=nulls,
        **settings,
    )
    values = np.asarray(found.scores)
    ends = np.asarray(selection.intervals(found, level=SURE))
    odds, p_values = np.full((2, len(values)), np.nan)
    if not np.isnan(values).all():
        odds = np.asarray(selection.outranks(found))[np.nanargmax(values)]
    if nulls:
        p_values = selection.p_values(found)
    return Judged(values, (ends[:, 1] - ends[:, 0]) / 2, odds, p_values)


def rows(
    ranking: Sequence[str],
    names: Sequence[str],
    sizes: Sequence[int],
    judged: Mapping[str, Judged],
) -> list[dict[str, Any]]:
    """A row a teacher, best first: every score with half of its interval, and p where known."""
    first = next(iter(judged.values()))
    listed = []
    for place, name in enumerate(ranking):
        position = names.index(name)
        row = {"rank": place + 1, "teacher": name, "labels": sizes[position]}
        row["first is better"] = float(first.odds[position]) if place else None
        for key, one in judged.items():
            row[key] = float(one.scores[position])
            row[f"{key} ±"] = float(one.margins[position])
            row[f"{key} p"] = float(one.p_values[position])
        listed.append(row)
    return listed


def cells(listed: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> list[dict[str, Any]]:
    """The rows as a table shows them: a score and its margin in one cell, nothing unknown."""

    def known(key: str) -> bool:
        return any(row[key] is not None and not np.isnan(row[key]) for row in listed)

    def cell(row: Mapping[str, Any], key: str) -> Any:
        margin = row[f"{key} ±"]
        # Without a margin: unknown, or a score that does not look at the examples.
        return f"{row[key]:.3f} ± {margin:.3f}" if margin > 0 else row[key]

    names = {"first is better": "first is better", f"{shown[0]} p": "p"}
    certain = {new: old for old, new in names.items() if known(old)}
    return [
        {key: row[key] for key in ("rank", "teacher", "labels")}
        | {new: row[old] for new, old in certain.items()}
        | {key: cell(row, key) for key in shown}
        for row in listed
    ]


def verdict(listed: Sequence[Mapping[str, Any]], score: str) -> str:
    """Whether the first teacher can be told from the others, in a sentence."""
    first, *others = [row for row in listed if not np.isnan(row[score])]
    text = f"{first['teacher']} is first by {score}"
    odds = [row["first is better"] for row in others]
    if not others or np.isnan(odds).any():
        text += "." if not others else "; how sure that is, is not known."
    elif min(odds) >= SURE:
        text += f", better than each of the others with a probability of {min(odds):.2f} at least."
    else:
        equal = [row["teacher"] for row in others if row["first is better"] < SURE]
        more = f" and {len(equal) - 5} more" if len(equal) > 5 else ""
        text += (
            f", but cannot be told from {', '.join(equal[:5])}{more}: it is better than each with "
            f"a probability below {SURE}."
        )
    return text


def against_nulls(judged: Mapping[str, Judged]) -> str | None:
    """How many teachers each score puts above what permuted labels give; None without nulls."""
    counts = []
    for name, one in judged.items():
        p_values = one.p_values[~np.isnan(one.p_values)]
        if p_values.size:
            # One in twenty is one in twenty, however it is rounded.
            counts.append(f"{name} {(p_values <= 1 - SURE + 1e-9).sum()} of {p_values.size}")
    if not counts:
        return None
    return (
        f"Teachers whose score is above that of permuted labels (p <= {1 - SURE:.2f}, which one of "
        f"{1 / (1 - SURE):.0f} has by chance): {', '.join(counts)}."
    )


def budget(
    functions: Mapping[str, scores.ScoreFn],
    faculty: selection.Faculty,
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int,
    **settings: Any,
) -> list[dict[str, Any]]:
    """How near the ranking from few examples comes to the one from all, score by score.

    Random parts of 2, 4, 8, ... examples of each class, below what the smallest class has. The
    parts belong to the whole, so that the largest agree with it in part by overlap.

    Returns:
        A row for each score and size: mean and standard error over the parts of Kendall's tau,
        weighted tau, and of the regret in units of the score: what the first teacher of the part
        lacks to the best, by the score on all examples.
    """
    counts = np.bincount(labels[labels >= 0], minlength=num_classes)
    sizes = [2**power for power in range(1, 20) if 2**power < counts.min()]
    checks.require(
        bool(sizes),
        "--budget needs three labelled examples of each class or more; "
        f"class {counts.argmin()} has {counts.min()}.",
    )
    random = np.random.default_rng([seed, 2])
    parts = np.stack([_part(labels, size, random) for size in sizes for _ in range(DRAWS)])
    listed = []
    for name, function in functions.items():
        found = np.asarray(
            selection.score_labellings(
                function, faculty, np.concatenate([labels[None], parts]), num_classes, **settings
            )
        )
        known = ~np.isnan(found).any(axis=0)
        if known.sum() < 2:
            continue
        whole, drawn = found[0, known], found[1:, known].reshape(len(sizes), DRAWS, -1)
        for size, scored in zip(sizes, drawn, strict=True):
            row: dict[str, Any] = {"score": name, "examples a class": size}
            for key, metric in METRICS.items():
                estimate = metrics.over_tasks([metric(values, whole) for values in scored])
                row[key], row[f"{key} ±"] = estimate
            listed.append(row)
    checks.require(bool(listed), "--budget: no score is defined for two teachers or more.")
    return listed


def budget_table(curve: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """A budget curve with a row a size and a column a score, of one of `METRICS`."""
    table: dict[int, dict[str, Any]] = {}
    for row in curve:
        size = row["examples a class"]
        line = table.setdefault(size, {"examples a class": size})
        line[row["score"]] = f"{row[key]:.3f} ± {row[f'{key} ±']:.3f}"
    return list(table.values())


METRICS = {
    "tau": metrics.kendall_tau,
    "weighted tau": metrics.weighted_kendall_tau,
    "regret": metrics.regret_at_k,
}


def _part(labels: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Labels of a few examples of each class, -1 for the others."""
    part = np.full_like(labels, -1)
    for label in np.unique(labels[labels >= 0]):
        part[random.choice(np.flatnonzero(labels == label), size, replace=False)] = label
    return part
