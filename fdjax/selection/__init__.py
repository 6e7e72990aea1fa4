"""From the teachers of a faculty to their scores, how sure those are, their ranking and weights."""

from fdjax.selection.elimination import Ask, Elimination, Round, eliminate, known
from fdjax.selection.ranking import mixture, rank
from fdjax.selection.scoring import ScoreFn, score_faculty, score_labellings
from fdjax.selection.search import Found, smallest
from fdjax.selection.sketches import Geometry, Index, Sketch, index, sketch
from fdjax.selection.soundness import faults
from fdjax.selection.stacking import Buckets, Faculty, bucket, stack
from fdjax.selection.uncertainty import (
    Resamples,
    bootstrap,
    halves,
    intervals,
    outranks,
    p_values,
    permutations,
    resample,
    standard_errors,
)

__all__ = [
    "Ask",
    "Buckets",
    "Elimination",
    "Faculty",
    "Found",
    "Geometry",
    "Index",
    "Resamples",
    "Round",
    "ScoreFn",
    "Sketch",
    "bootstrap",
    "bucket",
    "eliminate",
    "faults",
    "halves",
    "index",
    "intervals",
    "known",
    "mixture",
    "outranks",
    "p_values",
    "permutations",
    "rank",
    "resample",
    "score_faculty",
    "score_labellings",
    "sketch",
    "smallest",
    "stack",
    "standard_errors",
]
