r"""Can a network that sees one side of images teach another that sees the other, without labels?

    python -m experiments.cross_modal_distillation
    python -m experiments.cross_modal_distillation --source=imagenet_resized/32x32 --dataset=stl10 \
      --sides=chrominance

A teacher learns labels from one side of the images of a source: their lightness or brightness.
Students see the other side of other images, their colour without lightness or their edges, and
hear the teacher, who sees the first side of the same images; no label of these is used. Then each
student is frozen, and a linear classifier is fitted to its features with the labels. Beside them
stand an untrained network of the same kind, which hears nobody, and one that learnt from the
labels themselves. A run that was killed goes on by the same command. By default brightness
teaches edges on the embedded digits; README.md beside this file has a study of colour.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import _comparison, _methods, _probe, _recipe, _run, _workshop
from fdjax import data
from fdjax.data import preprocessing
from fdjax.types import Outputs, Variables

MEASURE = "linear probe"
LABELS = "its own labels"


class Sides(NamedTuple):
    """Two sides of an image in its channels.

    Attributes:
        views: From images to images of these channels.
        teacher: First and end of the channels that the teacher sees.
        student: Of those that the student sees.
    """

    views: Callable[[np.ndarray], np.ndarray]
    teacher: tuple[int, int]
    student: tuple[int, int]


SIDES = {
    "edges": Sides(data.brightness_edges, (0, 1), (1, 2)),
    "chrominance": Sides(data.luminance_chrominance, (0, 1), (1, 3)),
}


@dataclasses.dataclass(frozen=True)
class Config(_recipe.RecipeConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/cross_modal", "Folder of results, checkpoints and report.")
    source: str = _run.flag(
        "", "Data set of the teacher, in the forms of --dataset; if empty, --dataset itself."
    )
    sides: Literal["edges", "chrominance"] = _run.flag(
        "edges",
        "What the student sees: edges, the teacher seeing brightness; or chrominance, the two "
        "axes of colour, the teacher seeing lightness.",
    )
    teacher: str = _run.flag("resnet20", "Teacher network.")
    probe_decay: float = _run.flag(
        1e-3, "Of the linear classifier, on standardised features.", low=1e-9
    )
    methods: tuple[str, ...] = _run.flag(
        ("kd", "hint", "attention", "similarity", "crd", "crd+kd"), _comparison.METHODS_HELP
    )


def two_sides(task: data.Task, sides: Sides) -> data.Task:
    """The task with both sides of each image in its channels."""
    train, test = (
        data.Split(sides.views(part.images), part.labels) for part in (task.train, task.test)
    )
    return data.Task(task.name, train, test, task.class_names)


def looking_on(
    teacher: _workshop.Learner, own: data.Preprocessing, pairs: data.Preprocessing
) -> _workshop.Learner:
    """The teacher on images that were preprocessed for the student, which it reads as its own."""
    mean, std = (np.asarray(values, np.float32) for values in (own.mean, own.std))

    def use(variables: Variables, images: Any) -> Outputs:
        return teacher.use(variables, (preprocessing.brightness(images, pairs) - mean) / std)

    return teacher._replace(use=use)


def run(config: Config) -> dict[str, Any]:
    """Trains what is missing; returns what results.json holds."""
    _run.check(config)
    methods = _methods.parse_all(config.methods)
    sides = SIDES[config.sides]
    task = two_sides(_recipe.task(config), sides)
    source = two_sides(_recipe.task(config, config.source or None), sides)
    workshop, school = _workshop.Workshop(task, config), _workshop.Workshop(source, config)
    pairs = workshop.unlabelled()
    # The student's own labels are not used: its logits stand beside the teacher's.
    student, teacher = (
        _workshop.learner(name, source.num_classes, shape, dtype=config.dtype, channels=channels)
        for name, shape, channels in (
            (config.student, workshop.image_shape, sides.student),
            (config.teacher, school.image_shape, sides.teacher),
        )
    )
    beside = looking_on(teacher, school.preprocessing, workshop.preprocessing)
    shapes = _methods.of_one(beside, _workshop.shapes(teacher))
    _comparison.check(pairs, student, methods, shapes)
    book = _comparison.ledger(config, digest=task.digest, source=source.digest)
    record = _run.Run(config)
    book.begin()
    folder = record.workdir / "networks"

    @functools.cache
    def taught() -> Variables:
        return _workshop.train_teacher(school, teacher, folder / _comparison.TEACHER)

    def probed(network: _workshop.Learner, variables: Variables) -> dict[str, float]:
        train, test = (
            workshop.features(network.use, variables, images)
            for images in (np.asarray(workshop.images), workshop.test)
        )
        labels = np.asarray(task.train.labels), np.asarray(task.test.labels)
        reached = _probe.accuracy((train, labels[0]), (test, labels[1]), decay=config.probe_decay)
        return {MEASURE: reached}

    def untrained() -> _comparison.Train:
        return lambda seed: probed(student, student.fresh(jax.random.key(seed)))

    def supervised() -> _comparison.Train:
        own = _workshop.learner(
            config.student,
            task.num_classes,
            workshop.image_shape,
            dtype=config.dtype,
            channels=sides.student,
        )
        rate = _recipe.student_rate(config)
        course = _workshop.labels_only(workshop, own, rate=rate, epochs=config.epochs)
        place = folder / "labels"
        return lambda seed: probed(
            own, course.train(seed, place / f"seed-{seed}", LABELS).variables
        )

    seeds = _comparison.seeds(config)
    references = _comparison.reference(
        _comparison.TEACHER,
        config.seed,
        lambda: {MEASURE: school.accuracy(teacher.use, taught())},
    )
    rows = {_methods.ALONE: _comparison.Entry(untrained, seeds)}
    rows |= _comparison.students(
        pairs,
        student,
        methods,
        lambda: _methods.of_one(beside, taught()),
        functools.partial(probed, student),
        folder,
    )
    rows[LABELS] = _comparison.Entry(supervised, seeds)
    _comparison.fill(record, book, references | rows, [MEASURE])
    table = _comparison.table(book, rows, config, [MEASURE])
    reached = _comparison.value(book, _comparison.TEACHER, config.seed, MEASURE)
    note = (
        f"The teacher ({config.teacher}) learnt {source.name} from one side and has "
        f"{100 * reached:.1f} % there. Students see the other side ({config.sides}) of "
        f"{len(task.train)} images of {task.name} without labels; `{_methods.ALONE}` is a network "
        f"that was not trained, `{LABELS}` one that learnt from the labels."
    )
    title = f"Taught by another sense: {config.sides} of {task.name}"
    _comparison.report(
        "experiments.cross_modal_distillation", config, record, title, table, [MEASURE], [note]
    )
    return record.finish({"table": table, _comparison.TEACHER: reached})


if __name__ == "__main__":
    _run.main(run, Config)
