"""The target task of an experiment, and what the faculty says of it."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _run
from fdjax import checks, costs, data, faculty, processes, scores, selection
from fdjax.types import Outputs, TeacherOutputs


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Flags of every experiment on a few-shot task."""

    dataset: str = _run.flag(
        "digits", "TFDS name, the embedded digits, a file NAME.npz, or a folder of class folders."
    )
    data_dir: str | None = _run.flag(None, "Where TFDS keeps its data.")
    image_size: int = _run.flag(
        0, "Side in pixels to which images are resized, for speed; 0 leaves them.", low=0
    )
    classes: tuple[str, ...] = _run.flag((), "Classes of the task; a random half if empty.")
    shots: int = _run.flag(10, "Labelled images of each class.", low=1)
    unlabelled: int = _run.flag(-1, "Unlabelled images; -1 for all there are.", low=-1)
    mixed: int = _run.flag(
        0, "Images mixed from pairs of labelled ones, to be added as unlabelled ones.", low=0
    )
    varied: int = _run.flag(
        0,
        "Copies of labelled images, a little turned, zoomed, slanted and moved, to be added.",
        low=0,
    )
    copies: Literal["unlabelled", "labelled"] = _run.flag(
        "unlabelled",
        "Whether these copies have the label of their image: labelled is augmentation, and the "
        "student alone has it too.",
    )
    cost: Literal["predictions", "centres"] = _run.flag(
        "predictions", "Ground cost, of the transport score and of the distillation alike."
    )
    seed: int = _run.flag(0, "Seed of classes, labelled images and students.", low=0)


def load(dataset: str, data_dir: str | None, image_size: int) -> data.Task:
    """A data set, resized where a size is given."""
    task = data.load(dataset, data_dir=data_dir)
    return data.resize(task, image_size) if image_size else task


HALVES_SEED = 960402
"""Seed of the cut of every data set's training images: one half for teachers, one for targets.

It is the same in every experiment, so no teacher has seen a target's images, unless it was
trained elsewhere.
"""


def halves(task: data.Task) -> tuple[data.Task, data.Task]:
    """The task with the teachers' half, and with the target's half, of its training images."""
    teachers, target = data.split(task.train, 0.5, seed=HALVES_SEED)
    return (
        data.Task(task.name, teachers, task.test, task.class_names),
        data.Task(task.name, target, task.test, task.class_names),
    )


def half_of_the_classes(task: data.Task, seed: int) -> tuple[str, ...]:
    """Names of a random half of the classes (two at least, twenty at most), in order."""
    number = min(max(2, (task.num_classes + 1) // 2), 20)
    chosen = np.random.default_rng([seed, 1]).permutation(task.num_classes)[:number]
    return tuple(task.class_names[c] for c in sorted(chosen))


Judge = Literal["test", "unlabelled"]


def target(config: TaskConfig, *, judge: Judge = "test") -> data.Task:
    """The few-shot task of a config, on the target's half of its data set.

    Args:
        config: Names the data set, its classes and the numbers of images.
        judge: Which images stand in the task's test part: the data set's test images or, so
            that settings can be chosen without them, all training images of which the task
            has no label, with their labels.
    """
    _, whole = halves(load(config.dataset, config.data_dir, config.image_size))
    checks.require(
        len(config.classes) != 1,
        "--classes names one class only; name two or more, or none for half.",
    )
    whole = data.restrict(whole, config.classes or half_of_the_classes(whole, config.seed))
    unlabelled = None if config.unlabelled < 0 else config.unlabelled
    task = data.few_shot(whole, config.shots, seed=config.seed, unlabelled=unlabelled)
    if config.mixed:
        task = data.mix(task, config.mixed, seed=config.seed)
    if config.varied:
        labelled = config.copies == "labelled"
        task = data.vary(task, config.varied, seed=config.seed, labelled=labelled)
    if judge == "unlabelled":
        task = dataclasses.replace(task, test=_without_labels(whole, config))
    return task


def _without_labels(whole: data.Task, config: TaskConfig) -> data.Split:
    """All training images of which a config's task has no label, with their labels."""
    # Images that are the numbers of their rows tell which rows were drawn.
    rows = np.arange(len(whole.train), dtype=np.float32).reshape(-1, 1, 1, 1)
    numbered = data.Split(rows, whole.train.labels)
    numbered_task = data.Task(whole.name, numbered, numbered, whole.class_names)
    drawn = data.few_shot(numbered_task, config.shots, seed=config.seed).train
    hidden = drawn.rows(np.flatnonzero(drawn.labels < 0)).images.reshape(-1).astype(int)
    checks.require(
        hidden.size > 0,
        "every training image has a label, none is left to judge by; lower --shots.",
    )
    return whole.train.rows(hidden)


Shown = Literal[
    "transport", "reference", "leep", "nce", "logme", "knn", "source_accuracy", "size", "random"
]
"""The scores that a table has room for; `scores.SCORES` has all."""


class Observed(NamedTuple):
    """A faculty's outputs on the training images of a task.

    Attributes:
        root: Folder of the faculty.
        names: Of the teachers.
        outputs: Of each teacher, padded to common sizes.
        class_names: Of each teacher.
    """

    root: str
    names: tuple[str, ...]
    outputs: TeacherOutputs
    class_names: tuple[tuple[str, ...], ...]


KEEP = "float32"
KEEP_HELP = (
    "How what teachers say is kept in the faculty, and so read: float32; float16, in half the "
    "space; or a number, the probabilities of so many likeliest labels, the rest being spread."
)


def keep_of(text: str) -> faculty.Keep:
    """How observations are kept, from a flag.

    Raises:
        InputError: If it is none of the ways.
    """
    if re.fullmatch("[1-9][0-9]{0,6}", text):
        return int(text)
    checks.choice("--keep", text, ("float32", "float16", "a number of labels"))
    return "float16" if text == "float16" else "float32"


def ask(
    root: str, images: np.ndarray, names: Sequence[str], *, keep: faculty.Keep
) -> tuple[TeacherOutputs, ...]:
    """What teachers say of images; several processes share the networks, and a disk.

    Args:
        root: Folder of the faculty.
        images: As loaded.
        names: Of the teachers.
        keep: As for `faculty.observe`.
    """
    # Each process runs its share, and finds what the others kept.
    share = names[jax.process_index() :: jax.process_count()]
    if 0 < len(share) < len(names):
        faculty.observe_all(root, images, names=share, keep=keep, progress=True)
    processes.meet("observed")
    return faculty.observe_all(root, images, names=names, keep=keep, progress=True)


def observe(
    root: str, task: data.Task, names: Sequence[str] = (), *, keep: faculty.Keep = "float32"
) -> Observed:
    """What teachers of a faculty say of the task's training images (kept on disk).

    Args:
        root: Folder of the faculty.
        task: The target task.
        names: Of the teachers to ask; all if empty.
        keep: As for `faculty.observe`.

    Raises:
        InputError: If the faculty has no teacher of a name.
    """
    cards = faculty.cards(root)
    for name in names:
        checks.choice("teachers", name, [card.name for card in cards])
    cards = tuple(card for card in cards if not names or card.name in names)
    outputs = ask(root, task.train.images, [card.name for card in cards], keep=keep)
    return Observed(
        root,
        tuple(card.name for card in cards),
        selection.stack(outputs),
        tuple(card.class_names for card in cards),
    )


@functools.cache
def score_functions(**settings: Any) -> dict[str, scores.ScoreFn]:
    """The table of scores, with settings of the transport score.

    Cached, because `selection.score_faculty` compiles once for each function object.
    """
    return scores.SCORES | {"transport": functools.partial(scores.transport, **settings)}


def score(
    seen: Observed, task: data.Task, functions: Mapping[str, scores.ScoreFn]
) -> dict[str, np.ndarray]:
    """Scores of every teacher by name, from the labelled training images alone."""
    return {
        name: np.asarray(
            selection.score_faculty(function, seen.outputs, task.train.labels, task.num_classes)
        )
        for name, function in functions.items()
    }


def rank(values: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """Best teacher first; those for which the score is undefined come last, in their order."""
    checks.require(
        not np.isnan(values).all(),
        "the score is undefined for every teacher; choose another with --score, such as leep.",
    )
    return selection.rank(values, names, undefined="last")


def teaching(seen: Observed, name: str) -> Outputs:
    """One teacher's outputs as a student is taught from them: padded labels have logit -inf."""
    position = seen.names.index(name)
    probabilities = seen.outputs.probabilities[position]
    features = seen.outputs.features
    logits = jnp.where(probabilities > 0, jnp.log(probabilities), -jnp.inf)
    return Outputs(logits, None if features is None else features[position])


def teaching_together(seen: Observed, names: Sequence[str]) -> Outputs:
    """Several teachers' outputs: their logits side by side, all padded to one number of labels."""
    logits = [teaching(seen, name).logits for name in names]
    return Outputs(jnp.concatenate(logits, axis=1))


def cost(seen: Observed, task: data.Task, name: str, kind: str) -> jax.Array:
    """Ground cost of one teacher in nats, from the labelled training images alone.

    Args:
        seen: The faculty's outputs.
        task: The target task.
        name: Of the teacher.
        kind: "predictions" is the surprise -log P(student label | teacher label); "centres"
            the centred cosine distance of the teacher's class vectors to the class centres,
            on the scale that makes the labels most likely.
    """
    position = seen.names.index(name)
    one: TeacherOutputs = jax.tree.map(lambda leaf: leaf[position], seen.outputs)
    labels = jnp.asarray(task.train.labels)
    if kind == "predictions":
        return costs.from_predictions(one.probabilities, labels, task.num_classes)
    if one.features is None or one.class_vectors is None:
        raise checks.InputError(
            f"teacher {name!r} is known by its predictions only; use --cost=predictions."
        )
    mask = one.class_mask.astype(bool)
    centres = costs.class_centres(one.features, labels, task.num_classes)
    base = costs.between_vectors(one.class_vectors, centres, where=mask)
    return costs.calibrate(base, one.probabilities, labels, where=mask)
