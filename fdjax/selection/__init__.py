"""From the teachers of a faculty to their scores, how sure those are, their ranking and weights."""

from fdjax.selection.ranking import mixture, rank
from fdjax.selection.scoring import ScoreFn, score_faculty, score_labellings
from fdjax.selection.soundness import faults
from fdjax.selection.stacking import Buckets, Faculty, bucket, stack

__all__ = [
    "Buckets",
    "Faculty",
    "ScoreFn",
    "bucket",
    "faults",
    "mixture",
    "rank",
    "score_faculty",
    "score_labellings",
    "stack",
]
