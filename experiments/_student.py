"""Training students of one task on the same budget, and judging them."""

import concurrent.futures
import copy
import dataclasses
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from tqdm import tqdm

from experiments import _devices, _run, _task, _validation
from fdjax import checks, crossfit, data, faculty, metrics, models, objectives, training
from fdjax.faculty.cards import preprocessing_of
from fdjax.types import Batch, Variables

# Students that share out the labels among them for `School.log_beliefs`.
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class BudgetConfig(_task.TaskConfig):
    """Flags of every experiment that trains students."""

    student: str = _run.flag("convnet", "Student network: mlp, convnet, resnet.")
    steps: int = _run.flag(300, "Training steps of each student.", low=1)
    batch_size: int = _run.flag(96, "Images a step, labelled and unlabelled.", low=2)
    labelled: int = _run.flag(32, "Labelled images among them.", low=1)
    learning_rate: float = _run.flag(2e-3, "Of Adam, at the start of a half cosine.", low=0.0)


def check(config: BudgetConfig) -> None:
    """Refuses what could only fail later, before anything is computed."""
    checks.choice("--student", config.student, models.MODELS)
    checks.require(
        config.labelled < config.batch_size
        or config.unlabelled == config.mixed == config.varied == 0,
        f"--labelled={config.labelled} leaves no unlabelled image in a batch of "
        f"{config.batch_size}; lower it or raise --batch_size.",
    )


class Budget(NamedTuple):
    """What each student may spend.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images a step.
        labelled: How many of them are labelled, where unlabelled ones are used.
        learning_rate: Of Adam, falling to zero as a half cosine.
    """

    steps: int
    batch_size: int
    labelled: int
    learning_rate: float


def budget(config: BudgetConfig) -> Budget:
    """The budget of a config."""
    return Budget(config.steps, config.batch_size, config.labelled, config.learning_rate)


class School:
    """One task, one student network and one budget; a step is compiled once for each objective."""

    def __init__(
        self,
        task: data.Task,
        architecture: str,
        budget: Budget,
        objective: objectives.Objective,
        *,
        teach: training.Teach = training.observed,
        augment: training.Augment | None = None,
        confidence: float | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Preprocesses the images and makes the step.

        Args:
            task: With labelled and unlabelled training images.
            architecture: Of the student, one of `models.MODELS`.
            budget: Of every student.
            objective: What a student minimises.
            teach: As for `training.make_step`.
            augment: As for `training.make_step`; it meets the images as preprocessed for the
                student. Beliefs are of the unchanged images.
            confidence: As for `training.make_step`; participation is then counted.
            mesh: Devices over which `teach_one` spreads each batch, of this process or of several;
                None for one.
        """
        self.task, self.budget, self.objective, self.mesh = task, budget, objective, mesh
        self.teach, self.augment, self.confidence = teach, augment, confidence
        # A fixed share only where there are unlabelled images too.
        self.labelled_a_step = budget.labelled if (task.train.labels < 0).any() else None
        schedule = optax.cosine_decay_schedule(budget.learning_rate, budget.steps)
        self.optimiser = optax.adam(schedule)
        self._see(data.native_preprocessing(task))
        self.model = models.create(architecture, task.num_classes)
        self.student = models.trainable(self.model)
        self.network = models.frozen(self.model)
        self.fresh = functools.partial(models.initialise, self.model, image_shape=self.image_shape)
        self.step = self._new_step()
        self._log_beliefs: dict[int, jax.Array] = {}
        self._fine_tuners: dict[nn.Module, School] = {}
        self._one_at_a_time = threading.Lock()

    def _see(self, preprocessing: data.Preprocessing) -> None:
        """Preprocesses the images."""
        train, test = self.task.train, self.task.test
        self.preprocessing = preprocessing
        self.train = data.Split(data.preprocess(train.images, preprocessing), train.labels)
        self.test = data.Split(data.preprocess(test.images, preprocessing), test.labels)
        self.image_shape = self.train.images.shape[1:]

    def _new_step(self) -> training.Step:
        return training.make_step(
            self.student,
            self.teach,
            self.objective,
            self.optimiser,
            confidence=self.confidence,
            augment=self.augment,
        )

    def minimising(
        self, objective: objectives.Objective, *, teach: training.Teach | None = None
    ) -> "School":
        """The same school with a step for another objective; images and beliefs are shared.

        Args:
            objective: What a student minimises.
            teach: Another way of teaching; the school's own if None.
        """
        other = copy.copy(self)
        other.objective = objective
        other.teach = self.teach if teach is None else teach
        other.step = other._new_step()
        return other

    def knowing(self, labels: Any) -> "School":
        """The same images where these labels are known and no others; beliefs are found anew."""
        other = copy.copy(self)
        labels = np.asarray(labels, np.int32)
        train = data.Split(self.task.train.images, labels)
        other.task = dataclasses.replace(self.task, train=train)
        other.train = data.Split(self.train.images, labels)
        other._log_beliefs = {}
        return other

    def fine_tuning(self, card: faculty.Card, variables: Variables) -> "School":
        """The same task and budget for students that start as a teacher with a new last layer.

        They read the images as the teacher did and learn from the labels alone: give `teach_one`
        no teacher, and the school's own `objective`. Teachers of one architecture share one
        compiled step.

        Args:
            card: Of the teacher.
            variables: Of its network.

        Raises:
            InputError: If the teacher reads images of another shape than the task's, or only
                its outputs are known.
        """
        wanted = preprocessing_of(card)
        shape = (wanted.height, wanted.width, wanted.channels)
        checks.require(
            shape == self.image_shape,
            f"teacher {card.name!r} reads images of shape {shape}, but those of the task have "
            f"{self.image_shape}; fine-tune a teacher of this shape.",
        )
        model = models.create(card.architecture, self.task.num_classes, **card.options)
        with self._one_at_a_time:
            if model not in self._fine_tuners:
                self._fine_tuners[model] = self._with_network(model)
        other = copy.copy(self._fine_tuners[model])
        other._see(wanted)
        other.fresh = functools.partial(models.with_new_head, variables, self.task.num_classes)
        return other

    def _with_network(self, model: nn.Module) -> "School":
        """A school that learns from labels alone, of students with another network."""
        other = copy.copy(self)
        other.model = model
        other.student, other.network = models.trainable(model), models.frozen(model)
        other.teach, other.objective = training.no_teacher, objectives.cross_entropy()
        other.step = other._new_step()
        other._log_beliefs = {}
        return other

    def log_beliefs(self, seed: int) -> jax.Array:
        """What students like these, trained on the labels alone, believe of the training images.

        Cross-fitted, see `crossfit.log_beliefs`. Computed once for each seed; all seeds share
        one compiled program.

        Raises:
            InputError: If a class has fewer than two labelled images.
        """
        with self._one_at_a_time:  # students of one seed stand side by side and wait for these
            if seed not in self._log_beliefs:
                self._log_beliefs[seed] = crossfit.log_beliefs(
                    jax.random.fold_in(jax.random.key(seed), 2),
                    self.student,
                    self.network,
                    self.fresh,
                    self.optimiser,
                    jnp.asarray(self.train.images),
                    jnp.asarray(self.train.labels),
                    folds=_FOLDS,
                    steps=self.budget.steps,
                    batch_size=self.labelled_a_step or self.budget.batch_size,
                    at_once=_FOLDS if self.faster_together else 1,
                )
            return self._log_beliefs[seed]

    def batches(self, seed: int, start: int, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Batches from step `start` on, with a fixed share of labelled images if both exist."""
        return data.batches(
            self.train,
            self.budget.batch_size,
            seed=seed,
            start=start,
            labelled=self.labelled_a_step,
            share=share,
        )

    def start(
        self, seed: int, teacher: Any, objective: objectives.Objective
    ) -> training.TrainState:
        """A fresh student; `objective` may differ from the school's in its numbers only."""
        key = jax.random.key(seed)
        variables = self.fresh(key)
        return training.init_state(
            jax.random.fold_in(key, 1),
            variables,
            self.student,
            self.teach,
            objective,
            self.optimiser,
            next(self.batches(seed, 0)),
            teacher,
            num_examples=0 if self.confidence is None else len(self.train),
        )

    def teach_one(
        self,
        seed: int,
        teacher: Any,
        objective: objectives.Objective,
        *,
        folder: Path | None = None,
        resume: bool = False,
        save_every: int = 500,
        validation: _validation.Validation | None = None,
        name: str = "student",
        progress: bool = True,
    ) -> tuple[training.TrainState, list[training.Record]]:
        """Trains one student to the end of the budget, or with validation to the best it was."""
        judged: dict[str, Any] = {}
        if validation is not None:
            images = data.preprocess(validation.held_out.images, self.preprocessing)
            held_out = data.Split(images, validation.held_out.labels)
            judged["judge"] = _validation.judge(functools.partial(_predict, self.model), held_out)
            judged["judge_every"] = validation.every
            judged["patience"] = validation.patience
        state = self.start(seed, teacher, objective)
        state, teacher, batches = _devices.spread(
            self.mesh, state, teacher, functools.partial(self.batches, seed)
        )
        return training.fit(
            self.step,
            state,
            batches,
            teacher,
            steps=self.budget.steps,
            folder=folder,
            resume=resume,
            save_every=save_every,
            name=name,
            progress=progress,
            **judged,
        )

    @property
    def faster_together(self) -> bool:
        """Whether students train faster in one program than on threads.

        On a processor where they are matrix products only: a convolution with kernels of its own
        for each student is a grouped one, which processors do slowly. On an accelerator always.
        """
        shapes = jax.eval_shape(self.fresh, jax.random.key(0))["params"]
        products = all(leaf.ndim <= 2 for leaf in jax.tree.leaves(shapes))
        return products or jax.default_backend() != "cpu"

    def teach_together(
        self,
        seeds: Sequence[int],
        teachers: Sequence[Any],
        wanted: Sequence[objectives.Objective],
        *,
        name: str = "students",
    ) -> list[Variables]:
        """Trains students to the end of the budget in one program; the same as `teach_one` does.

        Args:
            seeds: Of each student.
            teachers: Of each student; all of the same shapes.
            wanted: Objective of each student, which may differ from the school's in its numbers.
            name: What the students are called where training fails.

        Returns:
            The variables of each.
        """
        whole = zip(seeds, teachers, wanted, strict=True)
        rows = {seed: self._rows(seed) for seed in set(seeds)}
        states = training.fit_together(
            self.step,
            [self.start(seed, teacher, objective) for seed, teacher, objective in whole],
            self.train.images,
            self.train.labels,
            np.stack([rows[seed] for seed in seeds]),
            teachers,
            name=name,
        )
        return [state.variables for state in states]

    def _rows(self, seed: int) -> np.ndarray:
        """Images of every batch of the budget, by their place."""
        batches = itertools.islice(self.batches(seed, 0), self.budget.steps)
        return np.stack([np.asarray(batch.indices) for batch in batches])

    def accuracy(self, variables: Variables) -> float:
        """Share of the test images that the student gets right."""
        return evaluate(self.model, variables, self.test)


def side_by_side(jobs: Sequence[Callable[[], Any]], name: str) -> list[Any]:
    """Runs jobs on threads, with one progress bar on a terminal; results in their order.

    A small network leaves most of a machine idle, and the compiled steps of several students
    run at once. Each job is independent, so the order in which they end changes no number.
    """
    workers = 1 + (os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(jobs[0])]
        concurrent.futures.wait(futures)  # it compiles what the others run
        futures += [pool.submit(job) for job in jobs[1:]]
        ended = concurrent.futures.as_completed(futures)
        quiet = not sys.stderr.isatty()
        for future in tqdm(ended, total=len(jobs), desc=name, disable=quiet, leave=False):
            if future.exception() is not None:  # no need to finish the others first
                pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


_predict = jax.jit(models.predict, static_argnums=0)


def evaluate(model: nn.Module, variables: Variables, part: data.Split) -> float:
    """Accuracy of a network on preprocessed images, in [0, 1]."""
    logits = [
        _predict(model, variables, jnp.asarray(part.images[start : start + 1024])).logits
        for start in range(0, len(part.labels), 1024)
    ]
    return float(metrics.accuracy(jnp.concatenate(logits), jnp.asarray(part.labels)))


def mean_and_spread(values: Any) -> str:
    """Mean and standard deviation over seeds, as a cell of a table."""
    values = np.asarray(values, np.float64)
    spread = values.std(ddof=1) if values.size > 1 else float("nan")
    return f"{values.mean():.3f} ± {spread:.3f}" if values.size > 1 else f"{values.mean():.3f}"
