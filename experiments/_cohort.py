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

    Pupils that no teacher reaches are one and the same student, who is trained once.

    Args:
        school: With the task's images and the budget.
        seen: The faculty's outputs on the task.
        cost: Kind of ground cost, as for `_task.cost`.
        pupils: Their objectives may differ in their numbers only, and so may their teachers'
            outputs.
        name: Shown beside the progress bar.
        ended: Told the place and the accuracy of each pupil as soon as it has ended.
    """

    def lesson(pupil: Pupil) -> _goals.Lesson:
        return _goals.Lesson(school, seen, cost, pupil.shares, pupil.seed)

    shared = school.minimising(_goals.make(pupils[0].choice, lesson(pupils[0]))[0])
    groups = _same_students(pupils, lesson)

    def accuracy(same: list[int]) -> float:
        pupil = pupils[same[0]]
        objective, teacher = _goals.make(pupil.choice, lesson(pupil))
        state, _ = shared.teach_one(pupil.seed, teacher, objective, progress=False)
        value = shared.accuracy(state.variables)
        for place in same:
            ended(place, value)
        return value

    values = _student.side_by_side([functools.partial(accuracy, same) for same in groups], name)
    found = {place: value for same, value in zip(groups, values, strict=True) for place in same}
    return [found[place] for place in range(len(pupils))]


def _same_students(
    pupils: Sequence[Pupil], lesson: Callable[[Pupil], _goals.Lesson]
) -> list[list[int]]:
    """Places of the pupils, those together that are one student because no teacher is heard."""
    groups: dict[Any, list[int]] = {}
    for place, pupil in enumerate(pupils):
        heard = _goals.is_heard(pupil.choice, lesson(pupil))
        groups.setdefault(place if heard else (pupil.choice.text, pupil.seed), []).append(place)
    return list(groups.values())
