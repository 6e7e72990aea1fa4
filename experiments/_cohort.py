"""Students of one task that share a compiled step, trained side by side and judged."""

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from experiments import _course, _goals, _student, _task

_BYTES, _MOST = 512 * 2**20, 32
"""Memory for states and teachers of the students in one program, and how many there may be."""


class Pupil(NamedTuple):
    """One student.

    Attributes:
        choice: What it minimises beside cross-entropy.
        shares: The teachers it hears, each with its share of the term.
        seed: Of start and batches.
    """

    choice: _goals.Choice
    shares: Mapping[str, float]
    seed: int


Course = Callable[[Pupil], _course.Course]
Ended = Callable[[int, float], None]


def accuracies(
    school: _student.School,
    seen: _task.Observed,
    cost: str,
    pupils: Sequence[Pupil],
    name: str,
    ended: Ended = lambda place, accuracy: None,
) -> list[float]:
    """Accuracy of each pupil at the end of the school's budget.

    Pupils of one seed whose teachers are not trusted are one and the same: one of them is trained.
    They train in one compiled program where that is faster (see `School.faster_together`), as
    many at a time as the memory holds, and on threads otherwise.

    Args:
        school: With the task's images and the budget.
        seen: The faculty's outputs on the task.
        cost: Kind of ground cost, as for `_task.cost`.
        pupils: Their objectives may differ in their numbers only, and so may their teachers'
            outputs.
        name: Shown beside the progress bar.
        ended: Told the place and the accuracy of each pupil as soon as it has ended.
    """

    def own_course(pupil: Pupil) -> _course.Course:
        lesson = _goals.Lesson(school, seen, cost, pupil.shares, pupil.seed)
        return _course.course(pupil.choice, lesson)

    shared = own_course(pupils[0]).school
    # Teachers that are fine-tuned differ in how they read images; they share a step anyhow.
    apart = pupils[0].choice.name == _goals.FINE_TUNE

    def course(pupil: Pupil) -> _course.Course:
        own = own_course(pupil)
        return own if apart else own._replace(school=shared)

    def identity(place: int) -> Any:
        own = course(pupils[place])
        return f"{own.choice} {pupils[place].seed}" if _course.trusts_nobody(own) else place

    jobs = [functools.partial(identity, place) for place in range(len(pupils))]
    alike: dict[Any, list[int]] = {}
    for place, one in enumerate(_student.side_by_side(jobs, f"{name}: trust")):
        alike.setdefault(one, []).append(place)
    students = list(alike.values())
    values: dict[int, float] = {}

    def end(student: int, accuracy: float) -> None:
        for place in students[student]:
            values[place] = accuracy
            ended(place, accuracy)

    train = _in_one_program if shared.faster_together and not apart else _on_threads
    train(course, [pupils[places[0]] for places in students], name, end)
    return [values[place] for place in range(len(pupils))]


def _on_threads(course: Course, pupils: Sequence[Pupil], name: str, ended: Ended) -> None:
    def train(place: int) -> None:
        own = course(pupils[place])
        seed = pupils[place].seed
        state, _ = own.school.teach_one(seed, own.teacher, own.objective, progress=False)
        ended(place, own.school.accuracy(state.variables))

    _student.side_by_side([functools.partial(train, place) for place in range(len(pupils))], name)


def _in_one_program(course: Course, pupils: Sequence[Pupil], name: str, ended: Ended) -> None:
    # Groups of one size, so that all run the same program: the last is filled up.
    groups = math.ceil(len(pupils) / _at_once(course(pupils[0]), pupils[0].seed))
    size = math.ceil(len(pupils) / groups)
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(pupils), desc=name, disable=quiet, leave=False) as bar:
        for first in range(0, len(pupils), size):
            group = range(first, min(first + size, len(pupils)))
            filled = [*group, *[first] * (size - len(group))]
            courses = [course(pupils[place]) for place in filled]
            school = courses[0].school
            variables = school.teach_together(
                [pupils[place].seed for place in filled],
                [own.teacher for own in courses],
                [own.objective for own in courses],
                name=name,
            )
            for place, one in zip(group, variables, strict=False):
                ended(place, school.accuracy(one))
            bar.update(len(group))


def _at_once(own: _course.Course, seed: int) -> int:
    """How many students may train in one program."""
    state = own.school.start(seed, own.teacher, own.objective)
    each = sum(leaf.nbytes for leaf in jax.tree.leaves((state, own.teacher)))
    return max(1, min(_MOST, _BYTES // each))
