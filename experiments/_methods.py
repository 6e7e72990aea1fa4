"""Methods of distillation in one label space, by name, and how each trains a student."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import _recipe, _settings, _workshop
from fdjax import checks, losses, objectives
from fdjax.objectives import Objective, Part, Weights
from fdjax.types import Batch, Outputs, Variables

ALONE = "alone"
"""The student that hears no teacher; it stands in every table."""

_ALL = "all"
_WITH_KD = "+kd"
_ONLY_KD = "kd"
_WEIGHTS = {"ce": "gamma", "kd": "alpha", "weight": "beta"}

METHODS: dict[str, Callable[..., Objective]] = {
    name: objectives.OBJECTIVES[name] for name in objectives.PRESETS if not name.endswith(_WITH_KD)
}
"""By name the objective beside cross-entropy; NAME+kd adds Hinton's distillation to any."""

EVERY = (*METHODS, f"crd{_WITH_KD}")
"""All that the published tables have, and the later ones of the library."""


class Method(NamedTuple):
    """What a flag asks for.

    Attributes:
        text: As it stands there.
        name: One of `METHODS`.
        weights: Of cross-entropy, Hinton's distillation and the method.
        settings: Of the objective.
    """

    text: str
    name: str
    weights: Weights
    settings: Mapping[str, Any]


def parse(text: str) -> Method:
    """A method with settings, as "crd+kd:weight=0.5:temperature=0.1".

    The settings ce, kd and weight are the weights of the three terms; those that are not given
    are published ones. All others are the objective's own.

    Raises:
        InputError: If the method or a setting is unknown, or a value is no number.
    """
    full = text.partition(":")[0]
    name = full.removesuffix(_WITH_KD)
    known_names = [*METHODS, *(f"{one}{_WITH_KD}" for one in METHODS if one != _ONLY_KD)]
    checks.choice("method", full, known_names)
    preset = objectives.PRESETS[name]
    if full.endswith(_WITH_KD):
        preset = objectives.PRESETS.get(full, preset._replace(alpha=1.0))
    own = _settings.defaults(METHODS[name])
    fields = {key: field for key, field in _WEIGHTS.items() if key != "weight" or name != _ONLY_KD}
    given = _settings.read(text, own | {key: getattr(preset, fields[key]) for key in fields})
    weights = preset._replace(**{fields[key]: given.pop(key) for key in fields if key in given})
    return Method(text, name, weights, given)


def parse_all(texts: Sequence[str]) -> list[Method]:
    """The methods of a flag.

    Raises:
        InputError: If there is none, or one stands twice.
    """
    checks.require(bool(texts), "--methods is empty; name at least one.")
    texts = [each for text in texts for each in (EVERY if text == _ALL else (text,))]
    for place, text in enumerate(texts):
        checks.require(
            text not in texts[:place] and text != ALONE,
            f"--methods names {text!r} twice; name each once ({ALONE!r} is always there).",
        )
    return [parse(text) for text in texts]


class Teachers(NamedTuple):
    """Whom the students hear.

    Attributes:
        teach: `(variables, batch) -> Outputs`, live; of several teachers side by side.
        variables: What `teach` reads; shapes are enough for a check.
        parts: Sizes of each teacher if there are several, else empty.
    """

    teach: Callable[[Any, Batch], Outputs]
    variables: Any
    parts: tuple[Part, ...] = ()


def of_one(teacher: _workshop.Learner, variables: Any) -> Teachers:
    """One teacher, on the images that the student sees."""
    return Teachers(lambda variables, batch: teacher.use(variables, batch.images), variables)


def of_several(
    teachers: Sequence[_workshop.Learner], variables: Sequence[Any], image: Any
) -> Teachers:
    """Several teachers at once.

    Args:
        teachers: Their networks.
        variables: Of each.
        image: A batch of images, or its shape.
    """

    def each(variables: Sequence[Variables], images: Any) -> list[Outputs]:
        return [teacher.use(own, images) for teacher, own in zip(teachers, variables, strict=True)]

    shapes = jax.eval_shape(each, tuple(variables), image)
    return Teachers(
        lambda variables, batch: objectives.side_by_side(each(variables, batch.images)),
        tuple(variables),
        tuple(map(objectives.part_of, shapes)),
    )


class Scene(NamedTuple):
    """Where a method trains students.

    Attributes:
        workshop: Their images and recipe.
        student: Their network.
        teachers: Whom they hear.
    """

    workshop: _workshop.Workshop
    student: _workshop.Learner
    teachers: Teachers


def class_distances(scene: Scene, *, samples: int = 1024) -> Array:
    """How unlike two classes are to the teacher, by its last maps; the cost of `wkd_logits`.

    Every position of a map is a sample, as in the authors' code; each class has as many.

    Args:
        scene: With one teacher.
        samples: The most of a class.
    """
    workshop = scene.workshop
    labels, images = workshop.task.train.labels, np.asarray(workshop.images)
    fewest = int(np.bincount(labels, minlength=workshop.task.num_classes).min())
    checks.require(fewest > 0, "`wkd_logits` needs training images of every class; add some.")
    network = functools.partial(_on_images, scene.teachers.teach)
    rows: list[np.ndarray] = []
    for label in range(workshop.task.num_classes):
        own = images[np.flatnonzero(labels == label)[: min(fewest, 64)]]
        (found,) = workshop.outputs(network, scene.teachers.variables, own)
        maps = np.asarray(found.hidden[-1] if found.hidden else found.features)
        rows.append(maps.reshape(-1, maps.shape[-1])[:samples])
    return losses.cka_distances(jnp.asarray(np.stack(rows)))


def _on_images(teach: Callable[[Any, Batch], Outputs], variables: Any, images: Any) -> Outputs:
    nothing = jnp.full(len(images), -1)
    return teach(variables, Batch(images, nothing, nothing))


def _term(method: Method, scene: Scene, *, cost: Array | None, paraphraser: Any) -> Objective:
    """The method's own term, of one teacher."""
    workshop, settings = scene.workshop, dict(method.settings)
    images = len(workshop.labels)
    negatives = workshop.config.negatives or max(1, images // 3)
    if method.name == "crd":
        settings |= {
            "labels": np.asarray(workshop.labels),
            "negatives": negatives,
            # A bank that the devices do not divide lies whole on each.
            "sharding": workshop.by_rows if images % workshop.num_devices == 0 else None,
        }
    if method.name == "crd_queue":
        settings["length"] = max(negatives, workshop.config.batch_size)
    if method.name == "wkd_logits":
        settings["cost"] = cost
    if method.name == "factor":
        settings["paraphraser"] = paraphraser
    return METHODS[method.name](**settings)


def goal(
    method: Method, scene: Scene, *, cost: Array | None = None, paraphraser: Any = None
) -> Objective:
    """What a student of a method minimises, after the first stage if there is one.

    Of several teachers Hinton's distillation is the mean and the method's term the sum, as
    published for CRD.

    Raises:
        InputError: If a setting is out of range.
    """
    weights = method.weights
    if bool((scene.workshop.labels < 0).all()):
        weights = weights._replace(gamma=0.0)  # no label, no cross-entropy
    if method.name == _ONLY_KD:
        only = objectives.kd(**method.settings)
        weights, term = weights._replace(alpha=0.0, beta=weights.alpha), only
    elif weights.beta == 0:
        term = None
    else:
        term = _term(method, scene, cost=cost, paraphraser=paraphraser)
    parts = scene.teachers.parts
    if not parts:
        return objectives.combined(term, weights)
    share = 1 / len(parts) if method.name == _ONLY_KD else 1.0
    each = objectives.combined(
        term,
        Weights(0.0, weights.alpha / len(parts), weights.beta * share),
    )
    together = objectives.ensemble(each, parts)
    if weights.gamma == 0:
        return together
    return objectives.weighted_sum((weights.gamma, objectives.cross_entropy()), (1.0, together))


class Lesson:
    """All students of one method: what is compiled or trained once for them, and each of them."""

    def __init__(self, method: Method, scene: Scene):
        """Prepares nothing yet that takes time.

        Raises:
            InputError: If the method cannot hear several teachers, or teaches labelled images
                and there is none.
        """
        self.method, self.scene = method, scene
        self.first = objectives.FIRST_STAGES.get(method.name)
        self._last: _workshop.Course | None = None
        of_one_teacher = (*objectives.FIRST_STAGES, "wkd_logits")
        checks.require(
            method.name not in of_one_teacher or not scene.teachers.parts,
            f"the method `{method.name}` prepares something of one teacher; leave it out of an "
            "ensemble.",
        )
        learns_by_labels = (*objectives.FIRST_STAGES, "dkd", "wkd_logits")
        checks.require(
            method.name not in learns_by_labels or bool((scene.workshop.labels >= 0).any()),
            f"the method `{method.name}` teaches labelled images, and here is none; leave it out.",
        )

    def check(self) -> None:
        """Refuses what cannot work, by shapes alone: nothing is compiled, no teacher trained.

        Raises:
            InputError: As the objective says.
        """
        classes = self.scene.workshop.task.num_classes
        cost = jnp.zeros((classes, classes))
        if self.first is None:
            self._course(goal(self.method, self.scene, cost=cost)).check()
            return
        first = self._first_course()
        first.check()
        if self.method.name == "factor":
            shapes = jax.eval_shape(self._paraphraser_shape, self.scene.teachers.variables)
            made = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            self._course(goal(self.method, self.scene, paraphraser=made)).check()

    def _paraphraser_shape(self, variables: Any) -> Any:
        images = jnp.zeros((2, *self.scene.workshop.image_shape))
        outputs = _on_images(self.scene.teachers.teach, variables, images)
        batch = Batch(images, jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32))
        return objectives.factor_paraphraser().init(jax.random.key(0), batch, outputs, outputs)[0]

    def _course(self, objective: Objective, **changes: Any) -> _workshop.Course:
        workshop, student, teachers = self.scene
        rate = _recipe.student_rate(workshop.config)
        settings = {
            "student": student.train,
            "fresh": student.fresh,
            "optimiser": workshop.optimiser(rate, workshop.config.epochs),
            "epochs": workshop.config.epochs,
        }
        return _workshop.Course(
            workshop=workshop,
            objective=objective,
            teach=teachers.teach,
            teacher=teachers.variables,
            **settings | changes,
        )

    def _first_course(self) -> _workshop.Course:
        """The first stage: of the student's maps, or of a paraphraser without a student."""
        workshop = self.scene.workshop
        config, rate = workshop.config, _recipe.student_rate(workshop.config)
        epochs = config.first_epochs or max(1, round(config.epochs / 8))
        if self.method.name == "factor":
            return self._course(
                objectives.factor_paraphraser(),
                student=objectives.bystander(workshop.task.num_classes),
                fresh=lambda key: objectives.NOTHING,
                optimiser=workshop.optimiser(min(rate, 0.01)),
                epochs=epochs,
            )
        checks.require(self.first is not None, f"`{self.method.name}` has no first stage.")
        return self._course(
            objectives.FIRST_STAGES[self.method.name](**self.method.settings),
            optimiser=objectives.except_head(workshop.optimiser(rate)),
            epochs=epochs,
        )

    def student(self, seed: int, folder: Path) -> Variables:
        """A trained student.

        Args:
            seed: Of start and batches.
            folder: Of the checkpoints of all students of this method.
        """
        text, own = self.method.text, folder / f"seed-{seed}"
        variables = None
        if self.first is not None and self.method.name != "factor":
            begun = self._first.train(seed, own / "first", f"{text}, first stage")
            variables = begun.variables
        return self.course(folder).train(seed, own / "last", text, variables).variables

    @functools.cached_property
    def _first(self) -> _workshop.Course:
        return self._first_course()

    def course(self, folder: Path | None) -> _workshop.Course:
        """The course that ends in the student; the same one for all seeds.

        Args:
            folder: As for `student`; None saves nothing.
        """
        if self._last is not None:
            return self._last
        cost = paraphraser = None
        if self.method.name == "wkd_logits":
            cost = class_distances(self.scene)
        if self.method.name == "factor":
            seed = self.scene.workshop.config.seed
            place = None if folder is None else folder / "paraphraser"
            begun = self._first.train(seed, place, f"{self.method.text}, first stage")
            paraphraser = begun.objective_params
        made = goal(self.method, self.scene, cost=cost, paraphraser=paraphraser)
        self._last = self._course(made)
        return self._last
