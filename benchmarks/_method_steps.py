"""Training steps by every method of distillation, with a live teacher, on random images."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import _loss_cases, _timing
from fdjax import models, objectives, training
from fdjax.data.augmentation import AUGMENTATIONS
from fdjax.objectives import PRESETS, Objective
from fdjax.types import Batch, Outputs, Variables

ALONE = "alone"
LIVE = "alone, teacher live"
_FIRST = ", first stage"


class Pair(NamedTuple):
    """Networks and methods.

    Attributes:
        teacher: One of `models.MODELS`.
        student: One of `models.MODELS`.
        methods: Of `PRESETS`, or with ", first stage"; all if empty.
        dtype: In which maps are computed.
        augmentation: One of `AUGMENTATIONS`.
        size: Side of the images in pixels.
    """

    teacher: str = "resnet20"
    student: str = "resnet8"
    methods: tuple[str, ...] = ()
    dtype: str = "float32"
    augmentation: str = "none"
    size: int = 32


class Made(NamedTuple):
    """A step that keeps its state, what it is called with, and its batch."""

    step: Any
    state: training.TrainState
    batch: Batch
    teacher: Variables


class Maker:
    """Steps of one pair of networks."""

    def __init__(self, pair: Pair, sizes: _loss_cases.Sizes):
        """Makes networks and a batch of random images."""
        self.pair, self.sizes = pair, sizes
        options = {} if pair.dtype == "float32" else {"dtype": pair.dtype}
        image = (pair.size, pair.size, 3)
        own, given = (
            models.create(name, sizes.classes, **options) for name in (pair.student, pair.teacher)
        )
        self.student, self.given = models.trainable(own), models.frozen(given)
        self.variables = models.initialise(own, jax.random.key(0), image)
        self.teacher = models.initialise(given, jax.random.key(1), image)
        rows = jnp.arange(sizes.batch, dtype=jnp.int32)
        images = jax.random.normal(jax.random.key(2), (sizes.batch, *image))
        self.batch = Batch(images, rows % sizes.classes, rows)
        self.labels = jnp.arange(sizes.examples) % sizes.classes
        decay = optax.add_decayed_weights(5e-4)
        self.optimiser = optax.chain(decay, optax.sgd(0.05, momentum=0.9))

    def teach(self, teacher: Variables, batch: Batch) -> Outputs:
        """The teacher, live."""
        return self.given(teacher, batch.images)

    def objective(self, method: str) -> Objective:
        """What a student of a method minimises."""
        cost = 1 - jnp.eye(self.sizes.classes)
        if method.endswith(_FIRST):
            return objectives.FIRST_STAGES[method.removesuffix(_FIRST)]()
        if method == ALONE:
            return objectives.cross_entropy()
        if method == LIVE:  # a weight of nearly nothing keeps the teacher from being left out
            return objectives.combined(None, PRESETS["kd"]._replace(gamma=1.0, alpha=1e-9))
        weights, name = PRESETS[method], method.removesuffix("+kd")
        if weights.beta == 0:
            return objectives.combined(None, weights)
        settings: dict[str, Any] = {
            "labels": self.labels,
            "cost": cost,
            "negatives": self.sizes.negatives,
            "length": self.sizes.negatives,
        }
        if name == "factor":
            outputs = self.teach(self.teacher, self.batch)
            first = objectives.factor_paraphraser()
            settings["paraphraser"] = first.init(jax.random.key(3), self.batch, outputs, outputs)[0]
        return objectives.combined(objectives.create(name, **settings), weights)

    def made(self, method: str) -> Made:
        """The step of a method, and its first state."""
        objective = self.objective(method)
        teach = training.no_teacher if method == ALONE else self.teach
        arguments = (self.student, teach, objective, self.optimiser)
        augment = AUGMENTATIONS[self.pair.augmentation]
        step = training.make_step(*arguments, augment=augment)
        state = training.init_state(
            jax.random.key(4), self.variables, *arguments, self.batch, self.teacher
        )
        return Made(step, state, self.batch, self.teacher)


def _every() -> list[str]:
    """All methods; in the second stage, abound and fsp are students alone."""
    first = [f"{name}{_FIRST}" for name in objectives.FIRST_STAGES]
    return [name for name in PRESETS if name not in ("abound", "fsp")] + first


class _Running:
    """A compiled step that goes on from where it is, as training does, so that it may donate."""

    def __init__(self, made: Made):
        start = time.perf_counter()
        self.step = made.step.lower(made.state, made.batch, made.teacher).compile()
        self.compile_seconds = time.perf_counter() - start
        self.made, self.state = made, made.state

    def __call__(self) -> Any:
        self.state, metrics = self.step(self.state, self.made.batch, self.made.teacher)
        return self.state.step, metrics

    def flops(self) -> float:
        """Of one step, as XLA counts them."""
        analysis = self.step.cost_analysis() or {}
        return float(analysis.get("flops", float("nan")))


def steps(pair: Pair, sizes: _loss_cases.Sizes, repeats: int) -> list[dict[str, Any]]:
    """Step time of every method, in turns, relative to that of the student alone."""
    maker = Maker(pair, sizes)
    names = [ALONE, LIVE, *(pair.methods or _every())]
    running = [_Running(maker.made(name)) for name in names]
    timings = _timing.measure_together([(step,) for step in running], repeats=repeats, budget=600.0)
    rows = [
        {
            "method": name,
            "seconds": timing.seconds,
            "milliseconds": 1e3 * timing.seconds,
            "compile_seconds": step.compile_seconds,
        }
        for name, step, timing in zip(names, running, timings, strict=True)
    ]
    return _timing.with_ratios(rows)


def throughput(
    pair: Pair, sizes: _loss_cases.Sizes, repeats: int, peak: float | None
) -> list[dict[str, Any]]:
    """Images a second of one pair, and the share of the device's peak."""
    maker = Maker(pair, sizes)
    square = jax.random.normal(jax.random.key(0), (4096, 4096)).astype(pair.dtype)
    product = jax.jit(lambda x: x @ x)
    reached = 2e-12 * len(square) ** 3 / _timing.measure(product, square, repeats=3).seconds
    rows = []
    for name in pair.methods or (ALONE, "kd", "crd"):
        running = _Running(maker.made(name))
        for _ in range(2):
            jax.block_until_ready(running())
        start = time.perf_counter()
        for _ in range(repeats):  # without waiting in between, as in training
            last = running()
        jax.block_until_ready(last)
        seconds = (time.perf_counter() - start) / repeats
        rate = 1e-12 * running.flops() / seconds
        rows.append(
            {
                "method": name,
                "pair": f"{pair.teacher} to {pair.student}",
                "dtype": pair.dtype,
                "milliseconds": 1e3 * seconds,
                "images a second": sizes.batch / seconds,
                "TFLOP/s": rate,
                "share of a product's": rate / reached,
                "share of the peak": None if peak is None else rate / peak,
                "compile_seconds": running.compile_seconds,
            }
        )
    return rows
