"""The best teacher of many without asking all of them about every example.

All teachers are scored on a few examples; those whose interval ends below that of the leader are
out, the others are scored on twice as many, and so on. What it saves is questions, pairs of a
teacher and an example: where a network has to run for each, nearly all of the time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fdjax import checks
from fdjax.selection.scoring import ScoreFn
from fdjax.selection.uncertainty import intervals, resample
from fdjax.types import UNLABELLED, TeacherOutputs

Ask: TypeAlias = Callable[[Sequence[int], np.ndarray], Sequence[TeacherOutputs]]
"""What some teachers (by position) say of some examples (rows), one answer a teacher."""


class Round(NamedTuple):
    """One look at the teachers that were left.

    Attributes:
        examples: How many each had been asked about by then.
        teachers: Their positions.
        scores: Their scores; NaN where undefined.
        intervals: Lower and upper end about each score.
        kept: Positions of those that stay.
    """

    examples: int
    teachers: tuple[int, ...]
    scores: np.ndarray
    intervals: np.ndarray
    kept: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Elimination:
    """What was found, and what it took.

    Attributes:
        leaders: Positions of the teachers that cannot be told from the best, best first.
        rounds: Every look, in order.
        questions: Pairs of a teacher and an example that were asked.
        full: Pairs that asking every teacher about every example would have taken.
    """

    leaders: tuple[int, ...]
    rounds: tuple[Round, ...]
    questions: int
    full: int

    @property
    def decided(self) -> bool:
        """Whether a single teacher is left."""
        return len(self.leaders) == 1


def _order(labels: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """Rows of the examples of each class in random order."""
    classes = np.unique(labels[labels != UNLABELLED])
    return [random.permutation(np.flatnonzero(labels == label)) for label in classes]


def _joined(parts: Sequence[TeacherOutputs]) -> TeacherOutputs:
    """One teacher's answers about several sets of examples as one."""
    features = [part.features for part in parts if part.features is not None]
    return parts[0]._replace(
        probabilities=jnp.concatenate([part.probabilities for part in parts]),
        features=jnp.concatenate(features) if features else None,
    )


def known(teachers: Sequence[TeacherOutputs]) -> Ask:
    """Asks teachers whose outputs on all examples are known already."""

    def ask(positions: Sequence[int], rows: np.ndarray) -> list[TeacherOutputs]:
        def part(one: TeacherOutputs) -> TeacherOutputs:
            return one._replace(
                probabilities=one.probabilities[rows],
                features=None if one.features is None else one.features[rows],
            )

        return [part(teachers[position]) for position in positions]

    return ask


def eliminate(
    score_fn: ScoreFn,
    teachers: Sequence[TeacherOutputs] | Ask,
    labels: Int[Array | np.ndarray, " examples"],
    num_classes: int,
    *,
    key: Array,
    number: int | None = None,
    first: int = 4,
    budget: int | None = None,
    level: float = 0.95,
    resamples: int = 100,
    **settings: Any,
) -> Elimination:
    """Finds the best teacher by successive elimination.

    A round asks every teacher left about the first examples of each class, in an order drawn once
    for all; a teacher whose interval ends below the lower end of the best score is out, and so is
    one whose score is undefined. The next round doubles the examples. It ends when one teacher is
    left, when all examples were used, or when another round would pass the budget. Each
    pair of a teacher and an example is asked about once.

    The more rounds, the more chances to lose the best teacher by bad luck: about (1 - level) / 2
    a round and rival at most; a `level` of 0.99 or more is the cautious choice.

    Args:
        score_fn: Score of one teacher.
        teachers: Their outputs on all examples, or what asks them: `(positions, rows) -> outputs`.
        labels: Class of each example, at least two of each class; unlabelled ones (-1) are not
            asked about.
        num_classes: Number of classes of the task.
        key: Randomness of the order and of the intervals.
        number: How many teachers there are, where `teachers` is a function.
        first: Examples of each class in the first round, >= 2 (all of a class that has fewer).
        budget: Most pairs of teacher and example to ask about; no bound if None.
        level: Of the intervals.
        resamples: Of the intervals.
        **settings: `batch_size` and `mesh` of `score_faculty`.

    Returns:
        The teachers left and the account.

    Raises:
        InputError: If a setting does not fit, a class has fewer than two examples, the budget does
            not suffice for the first round, or every score is undefined.
    """
    checks.labels("labels", labels, num_classes, unlabelled=True)
    checks.every_class_present("labels", labels, num_classes)
    checks.require(first >= 2, f"`first` must be at least 2 examples a class, got {first}.")
    if callable(teachers):
        checks.require(number is not None, "`teachers` is a function; say their `number`.")
        ask, total = teachers, int(number or 0)
    else:
        ask, total = known(teachers), len(teachers)
    checks.require(total > 0, "there is no teacher; hand in at least one.")
    labels = np.asarray(labels, np.int32)
    order_key, draw_key = jax.random.split(key)
    seed = np.asarray(jax.random.key_data(order_key)).ravel().tolist()
    order = _order(labels, np.random.default_rng(seed))
    longest = max(map(len, order))
    left = tuple(range(total))
    told: dict[int, list[TeacherOutputs]] = {position: [] for position in left}
    rounds: list[Round] = []
    questions, shots, seen = 0, first, np.zeros(0, int)
    while True:
        rows = np.concatenate([part[:shots] for part in order])
        fresh = np.setdiff1d(rows, seen, assume_unique=True)
        cost = len(fresh) * len(left)
        if budget is not None and questions + cost > budget:
            break
        for position, answer in zip(left, ask(left, fresh), strict=True):
            told[position].append(answer)
        questions, seen = questions + cost, np.concatenate([seen, fresh])
        answers = [_joined(told[position]) for position in left]
        found = resample(
            score_fn,
            answers,
            labels[seen],
            num_classes,
            key=jax.random.fold_in(draw_key, len(rounds)),
            resamples=resamples,
            **settings,
        )
        scores, ends = np.asarray(found.scores), np.asarray(intervals(found, level=level))
        checks.require(
            not np.isnan(scores).all(),
            f"the score is undefined for all {len(left)} teachers left after {len(seen)} examples; "
            "choose another score, such as leep, or a larger `first`.",
        )
        best = int(np.nanargmax(scores))
        # An interval that is not known (NaN) rules nobody out.
        out = np.isnan(scores) | (ends[:, 1] < ends[best, 0])
        kept = tuple(position for position, gone in zip(left, out, strict=True) if not gone)
        rounds.append(Round(len(seen), left, scores, ends, kept))
        left = kept
        if len(left) == 1 or shots >= longest:
            break
        shots *= 2
    checks.require(
        bool(rounds),
        f"`budget` of {budget} does not suffice for the first round, which asks {total} teachers "
        f"about {len(fresh)} examples; allow {cost} or more, or lower `first`.",
    )
    last = dict(zip(rounds[-1].teachers, rounds[-1].scores, strict=True))
    leaders = tuple(sorted(left, key=lambda position: -last[position]))
    return Elimination(leaders, tuple(rounds), questions, total * int((labels != UNLABELLED).sum()))
