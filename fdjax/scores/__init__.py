"""Scores that say how well one teacher suits a task; higher is better.

Each score is a pure function of one teacher, `(outputs, labels, num_classes) -> scalar`, made
for `jit` and `vmap`: `selection.score_faculty` maps it over a faculty. Unlabelled examples (-1)
take no part, and neither they nor labels, features and classes added as padding change a score.
A score that a teacher does not define is NaN: one of features for a black box, for features
that do not vary and for labels of one class; one of centres for a class without an example.

A new score is one function and one line of `SCORES`. Two scores of the literature are none of
one teacher's outputs alone: `etran` stretches its two parts over a set of teachers, and `otce`
needs examples of the task that the teacher was trained for.

`nearest` and `sketch_costs` score teachers by their sketches alone, before any is asked.
"""

from functools import partial

from fdjax.scores._baselines import random, size, source_accuracy
from fdjax.scores._coding_rate import transrate
from fdjax.scores._discriminant import etran, etran_energy, etran_lda, sfda
from fdjax.scores._evidence import logme
from fdjax.scores._gaussians import gbc
from fdjax.scores._hscore import hscore, regularised_hscore
from fdjax.scores._mixture import nleep
from fdjax.scores._nearest import nearest, sketch_costs
from fdjax.scores._neighbours import knn
from fdjax.scores._otce import OtceParts, otce, otce_parts
from fdjax.scores._pactran import pactran, pactran_gaussian
from fdjax.scores._predictions import leep, nce
from fdjax.scores._reference import reference
from fdjax.scores._similarity import lfc, parc
from fdjax.scores._transport import transport
from fdjax.selection import ScoreFn

SCORES: dict[str, ScoreFn] = {
    "transport": transport,
    "reference": reference,
    "leep": leep,
    "nce": nce,
    "nleep": nleep,
    "logme": logme,
    "hscore": hscore,
    "regularised_hscore": regularised_hscore,
    "transrate": transrate,
    "gbc": gbc,
    "gbc_diagonal": partial(gbc, covariance="diagonal"),
    "lfc": lfc,
    "parc": parc,
    "sfda": sfda,
    "etran_energy": etran_energy,
    "etran_lda": etran_lda,
    "pactran": pactran,
    "pactran_gamma": partial(pactran, prior="gamma"),
    "pactran_gaussian": pactran_gaussian,
    "knn": knn,
    "source_accuracy": source_accuracy,
    "size": size,
    "random": random,
}
"""Every score with its default settings, by name."""

__all__ = [
    "SCORES",
    "OtceParts",
    "ScoreFn",
    "etran",
    "etran_energy",
    "etran_lda",
    "gbc",
    "hscore",
    "knn",
    "leep",
    "lfc",
    "logme",
    "nce",
    "nearest",
    "nleep",
    "otce",
    "otce_parts",
    "pactran",
    "pactran_gaussian",
    "parc",
    "random",
    "reference",
    "regularised_hscore",
    "sfda",
    "size",
    "sketch_costs",
    "source_accuracy",
    "transport",
    "transrate",
]
