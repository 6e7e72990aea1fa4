"""How well a score of teachers foretold what they turned out to be worth."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments import _grid
from fdjax import metrics

RECALLED = 3
"""Teachers of highest score among whom the best are sought by `recall`."""

_TIE_BREAKS = 20


class Foretold(NamedTuple):
    """Agreement of a score with the truth over the teachers of one task.

    Teachers of equal truth are no pair: Kendall's tau is tau-b, and the weighted one the same
    with a weight for each pair, as SciPy has them. A score that tells such teachers apart is
    marked down for it, so that not even the truth itself reaches one once its ties are broken
    (see `perfect`).

    Attributes:
        weighted_tau: Kendall's tau in which the leading teachers count most.
        tau: Kendall's tau-b.
        spearman: Correlation of the ranks.
        pearson: Linear correlation.
        regret: Truth of the best teacher less that of the one with the highest score.
        recall: Share of the `RECALLED` best teachers among as many of the highest score.
        unknown: Teachers without a score (NaN), who count as last.
    """

    weighted_tau: float
    tau: float
    spearman: float
    pearson: float
    regret: float
    recall: float
    unknown: int


def compare(score: np.ndarray, truth: np.ndarray) -> Foretold:
    """Agreement of the scores of some teachers with the truth about them.

    A teacher without a score has the lowest one of all. NaN where a measure is not defined: for
    a truth or a score that is the same for all teachers, or a score of none.
    """
    known = ~np.isnan(score)
    filled = np.where(known, score, -np.inf)
    # Last of all, but not infinitely far from the others.
    lowest = np.where(known, score, score[known].min() if known.any() else 0.0)
    if not known.any():
        filled = np.full_like(filled, np.nan)
    return Foretold(
        metrics.weighted_kendall_tau(filled, truth),
        metrics.kendall_tau(filled, truth),
        metrics.spearman(filled, truth),
        metrics.pearson(lowest, truth),
        metrics.regret_at_k(filled, truth, k=1),
        metrics.recall_at_k(filled, truth, k=min(RECALLED, len(truth))),
        int((~known).sum()),
    )


def perfect(truth: np.ndarray) -> Foretold:
    """Agreement with itself of a truth whose ties are broken at random: what a score can reach.

    The mean over some random orders of the teachers that are equally good.
    """
    rng = np.random.default_rng(0)
    agreements = []
    for _ in range(_TIE_BREAKS):
        order = np.lexsort((rng.permutation(len(truth)), truth))
        place = np.empty(len(truth))
        place[order] = np.arange(len(truth))
        agreements.append(compare(place, truth))
    means = np.mean(np.asarray(agreements, np.float64), axis=0).tolist()
    return Foretold(*means)._replace(unknown=0)


class Summary(NamedTuple):
    """A score over all tasks, every measure with its mean and standard error over tasks.

    Attributes:
        score: Name of the score.
        weighted_tau: As in `Foretold`; so are the other measures.
        behind: Weighted tau below that of the leading score on the same task, whose standard
            error is that of the difference.
        unknown: Teachers without a score in all tasks together.
        tasks: On which the weighted tau is defined.
    """

    score: str
    weighted_tau: tuple[float, float]
    behind: tuple[float, float]
    tau: tuple[float, float]
    spearman: tuple[float, float]
    pearson: tuple[float, float]
    regret: tuple[float, float]
    recall: tuple[float, float]
    unknown: int
    tasks: int


def summaries(found: Mapping[str, Mapping[str, Foretold]]) -> list[Summary]:
    """Each score over all tasks, that of the highest mean weighted tau first.

    Args:
        found: By score, and by task; tasks on which a measure is not defined are left out of
            its mean.
    """

    def column(score: str, measure: str) -> np.ndarray:
        return np.asarray([getattr(one, measure) for one in found[score].values()], np.float64)

    def mean(values: np.ndarray) -> tuple[float, float]:
        defined = values[~np.isnan(values)]
        return _grid.mean_and_error(defined) if defined.size else (float("nan"), float("nan"))

    taus = {score: column(score, "weighted_tau") for score in found}
    order = sorted(found, key=lambda score: -np.nan_to_num(mean(taus[score])[0], nan=-np.inf))
    best = taus[order[0]]
    return [
        Summary(
            score=score,
            weighted_tau=mean(taus[score]),
            behind=mean(best - taus[score]),
            tau=mean(column(score, "tau")),
            spearman=mean(column(score, "spearman")),
            pearson=mean(column(score, "pearson")),
            regret=mean(column(score, "regret")),
            recall=mean(column(score, "recall")),
            unknown=int(column(score, "unknown").sum()),
            tasks=int((~np.isnan(taus[score])).sum()),
        )
        for score in order
    ]
