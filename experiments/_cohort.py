"""Students of one task that share a compiled step, trained side by side and judged."""

import collections
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments import _course, _goals, _student, _task


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


def accuracies(
    school: _student.School,
    seen: _task.Observed,
    cost: str,
    pupils: Sequence[Pupil],
    name: str,
    ended: Callable[[int, float], None] = lambda place, accuracy: None,
) -> list[float]:
    """Accuracy of each pupil at the end of the school's budget.

    Pupils of one seed whose teachers are not trusted are one and the same: one of them is trained.

    Args:
        school: With the task's images and the budget.
        seen: The faculty's outputs on the task.
        cost: Kind of ground cost, as for `_task.cost`.
        pupils: Their objectives may differ in their numbers only, and so may their teachers'
            outputs.
        name: Shown beside the progress bar.
        ended: Told the place and the accuracy of each pupil as soon as it has ended.
    """

    def course(pupil: Pupil) -> _course.Course:
        lesson = _goals.Lesson(school, seen, cost, pupil.shares, pupil.seed)
        return _course.course(pupil.choice, lesson)

    shared = course(pupils[0]).school
    untaught: dict[str, float] = {}
    one_at_a_time: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)

    def trained(seed: int, own: _course.Course) -> float:
        # Teachers that are fine-tuned differ in how they read images; they share a step anyhow.
        place = own.school if own.choice.name == _goals.FINE_TUNE else shared
        state, _ = place.teach_one(seed, own.teacher, own.objective, progress=False)
        return place.accuracy(state.variables)

    def accuracy(place: int) -> float:
        seed, own = pupils[place].seed, course(pupils[place])
        if _course.trusts_nobody(
            own.school.start(seed, own.teacher, own.objective).objective_state
        ):
            alike = f"{own.choice} {seed}"
            with one_at_a_time[alike]:
                if alike not in untaught:
                    untaught[alike] = trained(seed, own)
                value = untaught[alike]
        else:
            value = trained(seed, own)
        ended(place, value)
        return value

    jobs = [functools.partial(accuracy, place) for place in range(len(pupils))]
    return _student.side_by_side(jobs, name)
