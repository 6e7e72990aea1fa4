"""Students that may back-propagate a share of the samples only, and how each spends it."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _goals, _student
from fdjax import checks, data, objectives, regulation, training
from fdjax.types import Batch

Mode = Literal["none", "significance", "regulated", "hybrid"]
MODES: tuple[Mode, ...] = get_args(Mode)
REGULATED = ("regulated", "hybrid")
"""The modes in which the student's own confidence counts."""

CHOSEN = ("hardest", "prioritised", "entropy", "least_confident")
"""Peers that choose among the candidates of each step by what the student shows of them."""
KEPT = ("subset", "forgetting", "el2n", "grand")
"""Peers that keep a share of the images, once and for all."""
PEERS = ("uniform", "shorter", *KEPT[:1], *CHOSEN, *KEPT[1:])
"""Others ways to spend a share: `uniform` draws smaller batches, `shorter` makes fewer steps."""

BY_SHARE = "share"
"""The confidence that adapts itself, so that as many take part as there is room for."""
BY_ERROR = "error"
"""The confidence that falls with the share of candidates that the student gets wrong."""

# The share of the steps after which a proxy's errors are looked at: "early in training".
_EARLY = 0.25


class Job(NamedTuple):
    """One student.

    Attributes:
        task: Name of its task.
        teacher: Digest of its teacher, so that a grid can go on with more data sets.
        method: One of `MODES` or `PEERS`.
        share: Of the samples of a full run that it may back-propagate.
        confidence: As `check_confidence` knows it, or empty where it does not matter.
        refresh: Steps from one fresh look at the candidates to the next; 0 where none is needed.
        seed: Of the student.
    """

    task: str
    teacher: str
    method: str
    share: float
    confidence: str
    refresh: int
    seed: int


class Outcome(NamedTuple):
    """How a student ended.

    Attributes:
        validation: Accuracy on images held out from training, to choose settings by.
        test: Accuracy on test images.
        used: Samples that it back-propagated.
        seconds: Of the training loop, without compilation.
    """

    validation: float
    test: float
    used: int
    seconds: float


class Way(NamedTuple):
    """How a student is trained.

    Attributes:
        step: Compiled once for all seeds.
        optimiser: Of the step.
        steps: Of the run.
        batches: `(seed, start) -> iterator`.
        confidence: Of the step.
        remembers: Whether the state has a memory.
    """

    step: training.Step
    optimiser: optax.GradientTransformation
    steps: int
    batches: Callable[[int, int], Iterator[Batch]]
    confidence: float | regulation.Threshold | None = None
    remembers: bool = False


class Place:
    """A task with its teacher, where students of every kind are trained."""

    def __init__(
        self,
        choice: _goals.Choice,
        lesson: _goals.Lesson,
        held_out: data.Split,
        weights: jax.Array | None,
    ):
        """Prepares images; nothing is trained yet.

        Args:
            choice: What students minimise.
            lesson: The school, its teacher and what the teacher says; of any seed.
            held_out: Images to choose settings by, as they were loaded.
            weights: Significance of each training image; None where no mode needs it.
        """
        self.choice, self.lesson, self.school = choice, lesson, lesson.school
        self.weights = weights
        images = data.preprocess(held_out.images, self.school.preprocessing)
        self.held_out = data.Split(images, held_out.labels)
        self._taught = functools.cache(self._goal)
        self._way = functools.cache(self._new_way)
        self._proxy = functools.cache(self._new_proxy)

    def _goal(self, seed: int) -> tuple[objectives.Objective, Any]:
        """Objective and teacher of the students of a seed."""
        objective, teacher = _goals.make(self.choice, self.lesson._replace(seed=seed))
        return objective, jax.device_put(teacher)

    def batches(self, size: int, rows: np.ndarray | None, seed: int, start: int) -> Iterator[Batch]:
        """Batches of some size, from all images or from some rows of them."""
        school, train = self.school, self.school.train
        labelled = school.labelled_a_step
        if labelled is not None:
            labelled = max(1, round(labelled * size / school.budget.batch_size))
        if rows is None:
            return data.batches(train, size, seed=seed, start=start, labelled=labelled)
        part = train.rows(rows)
        found = data.batches(part, size, seed=seed, start=start, labelled=labelled)
        places = rows.astype(np.int32)
        return (batch._replace(indices=places[batch.indices]) for batch in found)

    def slots(self, share: float) -> int:
        """Samples a step at a share of the full batch."""
        return max(1, round(share * self.school.budget.batch_size))

    def _optimiser(self, steps: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.school.budget.learning_rate, steps))

    def _plain(self, size: int, steps: int, rows: np.ndarray | None, weights: Any) -> Way:
        """A way on which each image of a batch is back-propagated."""
        optimiser, school = self._optimiser(steps), self.school
        objective, _ = self._taught(self.lesson.seed)
        step = training.make_step(
            school.student, school.teach, objective, optimiser, weights=weights
        )
        return Way(step, optimiser, steps, functools.partial(self.batches, size, rows))

    def _new_way(
        self, method: str, share: float, confidence: str, refresh: int, seed: int | None
    ) -> Way:
        """The way of a method; of one seed only where the images that are kept depend on it."""
        steps, whole = self.school.budget.steps, self.school.budget.batch_size
        slots = self.slots(share)
        if method == "none":
            return self._plain(whole, steps, None, None)
        if method == "shorter":
            return self._plain(whole, max(1, round(share * steps)), None, None)
        if method == "uniform":
            return self._plain(slots, steps, None, None)
        if method == "significance":
            rows = np.flatnonzero(np.asarray(self.weights) > 0)
            return self._plain(slots, steps, rows, self.weights)
        if seed is not None:
            # The same step for every seed, and for every way to keep images.
            base = self._way("uniform", share, "", 0, None)
            rows = self._kept(method, share, seed)
            return base._replace(batches=functools.partial(self.batches, slots, rows))
        return self._compacted(method, share, confidence, refresh)

    def _compacted(self, method: str, share: float, confidence: str, refresh: int) -> Way:
        """A way on which candidates are looked at, and some are back-propagated."""
        school, slots = self.school, self.slots(share)
        optimiser = self._optimiser(school.budget.steps)
        rule: float | regulation.Threshold | None = None
        if method in REGULATED:
            rule = _rule(confidence, share, school.budget.steps)
        step = training.make_compacted_step(
            school.student,
            school.teach,
            self._taught(self.lesson.seed)[0],
            optimiser,
            slots=slots,
            confidence=rule,
            select=None if rule is not None else regulation.SELECTIONS[method],
            weights=self.weights if method == "hybrid" else None,
            refresh_every=refresh,
        )
        batches = functools.partial(self.batches, school.budget.batch_size, None)
        return Way(step, optimiser, school.budget.steps, batches, rule, True)

    def _kept(self, method: str, share: float, seed: int) -> np.ndarray:
        """Images that a method keeps: the same share of labelled and unlabelled ones."""
        name = "uniform" if method == "subset" else method
        key = jax.random.fold_in(jax.random.key(seed), 4)
        labels = self.school.train.labels
        if method == "subset":
            seen = regulation.never_seen(len(labels))
        else:
            early, late = self._proxy(seed)
            seen = late if method == "forgetting" else early
        priority = np.asarray(regulation.SELECTIONS[name](key, seen))
        kinds = [np.flatnonzero(known) for known in (labels >= 0, labels < 0)]
        return np.concatenate(
            [rows[regulation.top_share(priority[rows], share)] for rows in kinds if rows.size]
        )

    def _new_proxy(self, seed: int) -> tuple[regulation.Seen, regulation.Seen]:
        """What a student of the labels alone showed early in its training, and at the end."""
        school, steps = self.school, self.school.budget.steps
        objective = objectives.cross_entropy()
        optimiser = self._optimiser(steps)
        whole = school.budget.batch_size
        step = training.make_compacted_step(
            school.student, training.no_teacher, objective, optimiser, slots=whole
        )
        batches = functools.partial(self.batches, whole, None, seed)
        state = self._start(seed, training.no_teacher, objective, None, optimiser, batches, None)
        found = []
        for end in (max(1, round(_EARLY * steps)), steps):
            state, _ = training.fit(step, state, batches, None, steps=end, progress=False)
            found.append(jax.tree.map(jnp.copy, state.seen))
        return found[0], found[1]

    def _start(
        self,
        seed: int,
        teach: training.Teach,
        objective: objectives.Objective,
        teacher: Any,
        optimiser: optax.GradientTransformation,
        batches: Callable[[int], Iterator[Batch]],
        confidence: Any,
        remembers: bool = True,
    ) -> training.TrainState:
        key = jax.random.key(seed)
        return training.init_state(
            jax.random.fold_in(key, 1),
            self.school.fresh(key),
            self.school.student,
            teach,
            objective,
            optimiser,
            next(batches(0)),
            teacher,
            num_examples=len(self.school.train) if remembers else 0,
            confidence=confidence,
            remembers=remembers,
        )

    def train(self, job: Job) -> Outcome:
        """Trains and judges one student."""
        way = self._way(
            job.method,
            job.share,
            job.confidence,
            job.refresh,
            job.seed if job.method in KEPT else None,
        )
        batches = functools.partial(way.batches, job.seed)
        objective, teacher = self._taught(job.seed)

        def start() -> training.TrainState:
            return self._start(
                job.seed,
                self.school.teach,
                objective,
                teacher,
                way.optimiser,
                batches,
                way.confidence,
                way.remembers,
            )

        state = start()
        jax.block_until_ready(way.step(start(), next(batches(0)), teacher))  # compiled before
        began = time.perf_counter()
        state, _ = training.fit(
            way.step,
            state,
            batches,
            teacher,
            steps=way.steps,
            log_every=way.steps,
            name=job.method,
            progress=False,
        )
        seconds = time.perf_counter() - began
        used = (
            int(state.counts.sum())
            if state.counts is not None
            else way.steps * len(next(batches(0)).labels)
        )
        judged = [
            _student.evaluate(self.school.model, state.variables, part)
            for part in (self.held_out, self.school.test)
        ]
        return Outcome(judged[0], judged[1], used, seconds)


def _rule(confidence: str, share: float, steps: int) -> float | regulation.Threshold:
    """The confidence of a step in which a share of the candidates finds room."""
    if confidence == BY_SHARE:
        return regulation.by_share(share) if share < 1 else 1.0
    if confidence == BY_ERROR:
        return regulation.by_error(1.0)
    start, _, end = confidence.partition(":")
    return regulation.annealed(float(start), float(end), steps) if end else float(start)


def check_confidence(text: str) -> None:
    """Refuses what is no number, no START:END (both in [0, 1]), and no rule that adapts itself."""
    if text in (BY_SHARE, BY_ERROR):
        return
    try:
        values = [float(end) for end in text.split(":")]
    except ValueError:
        values = []
    checks.require(
        len(values) in (1, 2),
        f"--confidences must be numbers, START:END, {BY_SHARE!r} or {BY_ERROR!r}; got {text!r}.",
    )
    for value in values:
        checks.in_range("--confidences", value, 0.0, 1.0)
