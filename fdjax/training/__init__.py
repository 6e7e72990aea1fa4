"""One compiled training step for any student, teacher and objective, and the loop around it."""

from fdjax.training.compacted import make_compacted_step
from fdjax.training.loop import Judge, Record, fit
from fdjax.training.steps import (
    Augment,
    Step,
    Teach,
    TrainState,
    init_state,
    make_step,
    no_teacher,
    observed,
)
from fdjax.training.together import fit_together

__all__ = [
    "Augment",
    "Judge",
    "Record",
    "Step",
    "Teach",
    "TrainState",
    "fit",
    "fit_together",
    "init_state",
    "make_compacted_step",
    "make_step",
    "no_teacher",
    "observed",
]
