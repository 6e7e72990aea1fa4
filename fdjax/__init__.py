"""Score a faculty of pretrained classifiers for your task, and teach your student from it.

A student has a task and few labels; a faculty is a repository of trained classifiers whose
label spaces differ from the student's. The story, room by room:

`data` loads a task and `models` names networks. A `faculty` keeps teachers on disk and
observes what they say of the task's images. `costs` price the way from each teacher label to
each student label, `transport` finds the cheapest way, and `scores` tell how cheap it is for
each teacher; `selection` does so for all of them in one pass and ranks them. What the student
may believe once it has heard its teachers is a `belief`; `crossfit` gives the beliefs that the
labels alone allow, and `trust` tells how far the labels bear each teacher out, so that one who
knows nothing is not heard. The student is then trained (`training`) to minimise an `objectives`
built on `losses`, chief among them that same transport; `crossvalidation` chooses the weight of a
teacher's term, zero unless it helps. `regulation` picks the examples worth a
step, `metrics` judge rankings and students, `checkpoints` keep a run alive, and `reports` show
what came out.
"""

from fdjax import (
    belief,
    checkpoints,
    costs,
    crossfit,
    crossvalidation,
    data,
    faculty,
    losses,
    metrics,
    models,
    objectives,
    regulation,
    reports,
    scores,
    selection,
    training,
    transport,
    trust,
    types,
)
from fdjax.checks import InputError

__all__ = [
    "InputError",
    "belief",
    "checkpoints",
    "costs",
    "crossfit",
    "crossvalidation",
    "data",
    "faculty",
    "losses",
    "metrics",
    "models",
    "objectives",
    "regulation",
    "reports",
    "scores",
    "selection",
    "training",
    "transport",
    "trust",
    "types",
]
