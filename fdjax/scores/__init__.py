"""Scores that say how well one teacher suits a task; higher is better.

Each score is a pure function of one teacher, `(outputs, labels, num_classes) -> scalar`, made
for `jit` and `vmap`: `selection.score_faculty` maps it over a faculty. Labels and features
added as padding change no score. A score that a teacher does not define is NaN: one of
features for a black box, one of centres for a class without an example.

A new score is one function and one line of `SCORES`.
"""

from fdjax.scores._baselines import random, size, source_accuracy
from fdjax.scores._evidence import logme
from fdjax.scores._neighbours import knn
from fdjax.scores._predictions import leep, nce
from fdjax.scores._reference import reference
from fdjax.scores._transport import transport
from fdjax.selection import ScoreFn

SCORES: dict[str, ScoreFn] = {
    "transport": transport,
    "reference": reference,
    "leep": leep,
    "nce": nce,
    "logme": logme,
    "knn": knn,
    "source_accuracy": source_accuracy,
    "size": size,
    "random": random,
}
"""Every score with its default settings, by name."""

__all__ = [
    "SCORES",
    "ScoreFn",
    "knn",
    "leep",
    "logme",
    "nce",
    "random",
    "reference",
    "size",
    "source_accuracy",
    "transport",
]
