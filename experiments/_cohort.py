"""Students of one task that share a compiled step, trained side by side and judged."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import _goals, _student, _task


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

    Args:
        school: With the task's images and the budget.
        seen: The faculty's outputs on the task.
        cost: Kind of ground cost, as for `_task.cost`.
        pupils: Their objectives may differ in their numbers only, and so may their teachers'
            outputs.
        name: Shown beside the progress bar.
        ended: Told the place and the accuracy of each pupil as soon as it has ended.
    """

    def made(pupil: Pupil) -> Any:
        lesson = _goals.Lesson(school, seen, cost, pupil.shares, pupil.seed)
        return _goals.make(pupil.choice, lesson)

    shared = school.minimising(made(pupils[0])[0])

    def accuracy(place: int) -> float:
        pupil = pupils[place]
        objective, teacher = made(pupil)
        state, _ = shared.teach_one(pupil.seed, teacher, objective, progress=False)
        value = shared.accuracy(state.variables)
        ended(place, value)
        return value

    jobs = [functools.partial(accuracy, place) for place in range(len(pupils))]
    return _student.side_by_side(jobs, name)
