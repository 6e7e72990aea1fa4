"""Where one student learns, what it minimises, and whom it hears."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments import _goals, _live, _student
from fdjax import crossvalidation, objectives
from fdjax.objectives import Objective
from fdjax.objectives.reference import ReferenceState
from fdjax.types import Outputs

# Candidates for a weight that is chosen, in units of the goal's own.
_TIMES = (0.0, 0.3, 1.0, 3.0)


class Course(NamedTuple):
    """What `School.teach_one` is called with, and of which school.

    Attributes:
        choice: What was asked for, its weight as a number.
        school: With the step of this objective.
        objective: What the student minimises.
        teacher: What the step takes as its teacher.
    """

    choice: _goals.Choice
    school: _student.School
    objective: Objective
    teacher: Any


def course(choice: _goals.Choice, lesson: _goals.Lesson) -> Course:
    """The course of one student.

    Raises:
        InputError: If the goal cannot hear these teachers, or a setting is out of range.
    """
    school = lesson.school
    if choice.name == _goals.FINE_TUNE:
        card, variables = _live.load(lesson.seen.root, lesson.only, f"--objective={choice.name}")
        school = school.fine_tuning(card, variables)
        return Course(choice, school, school.objective, None)
    choice = weighed(choice, lesson)
    objective, teacher = _goals.make(choice, lesson)
    if school.augment is None or not lesson.shares:
        return Course(choice, school.minimising(objective), objective, teacher)
    labels = school.task.class_names if choice.goal.hears == "namesake" else ()
    names = list(lesson.shares)
    teach, live = _live.teachers(
        lesson.seen.root, lesson.seen, names, school.preprocessing, labels=labels
    )
    return Course(choice, school.minimising(objective, teach=teach), objective, live)


def trusts_nobody(own: Course) -> bool:
    """Whether no teacher is trusted, so that the loss does not depend on what they say."""
    if own.choice.goal.objective is not objectives.trusted_reference:
        return False
    school = own.school
    batch = next(school.batches(0, 0))
    student = Outputs(jnp.zeros((len(batch.labels), school.task.num_classes)))
    said = school.teach(own.teacher, jax.tree.map(jnp.asarray, batch))
    # Trust is found beforehand: it depends on neither batch nor student.
    _, state = own.objective.init(jax.random.key(0), batch, student, said)
    return not has_trust(state)


def has_trust(objective_state: Any) -> bool:
    """Whether a teacher of reference transport is trusted, by an objective's state."""
    nodes = jax.tree.leaves(objective_state, is_leaf=lambda node: isinstance(node, ReferenceState))
    trusts = [node.trust.teachers for node in nodes if isinstance(node, ReferenceState)]
    return any((trust > 0).any() for trust in trusts)


def weighed(choice: _goals.Choice, lesson: _goals.Lesson) -> _goals.Choice:
    """The choice with its weight as a number: `AUTO` is found by cross-validation.

    The candidates are zero, and the goal's own weight times 0.3, 1 and 3.
    """
    if choice.settings.get("weight") != _goals.AUTO:
        return choice
    school, own = lesson.school, choice.goal.weight
    labelled = school.labelled_a_step or school.budget.batch_size
    weight, _ = crossvalidation.choose_weight(
        jax.random.fold_in(jax.random.key(lesson.seed), 3),
        school.student,
        school.network,
        school.fresh,
        school.optimiser,
        _term(choice, lesson),
        jnp.asarray(school.train.images),
        jnp.asarray(school.train.labels),
        _goals.speech(choice, lesson),
        weights=[times * own for times in _TIMES],
        steps=school.budget.steps,
        batch_size=labelled,
        unlabelled_batch=school.budget.batch_size - labelled,
    )
    return choice._replace(settings=choice.settings | {"weight": weight})


def _term(choice: _goals.Choice, lesson: _goals.Lesson) -> Callable[[Array], Objective]:
    """The term of a goal, from those of the labels that are given."""
    school = lesson.school
    return lambda labels: _goals.term(choice, lesson._replace(school=school.knowing(labels)))
