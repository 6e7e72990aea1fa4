"""Self-regulated learning: which examples are worth a step, and how significant that makes them.

A learner looks at examples (`look`), and those that it gets wrong or is unsure of take part
(`takes_part`, under a `Threshold`). How often each took part (`count`) is its `significance`.
`SELECTIONS` are other people's ways to spend the same budget, and `compact` picks the examples
that are worth it out of many candidates, so that the others need not be back-propagated.
"""

from fdjax.regulation.compaction import compact, regulated, top_share
from fdjax.regulation.looking import Seen, look, never_seen, remember
from fdjax.regulation.participation import (
    FORMS,
    Form,
    count,
    participates,
    significance,
    takes_part,
)
from fdjax.regulation.selections import SELECTIONS, Selection
from fdjax.regulation.thresholds import (
    Threshold,
    annealed,
    by_error,
    by_share,
    fixed,
    threshold,
)

__all__ = [
    "FORMS",
    "SELECTIONS",
    "Form",
    "Seen",
    "Selection",
    "Threshold",
    "annealed",
    "by_error",
    "by_share",
    "compact",
    "count",
    "fixed",
    "look",
    "never_seen",
    "participates",
    "regulated",
    "remember",
    "significance",
    "takes_part",
    "threshold",
    "top_share",
]
