"""Do several teachers teach one student better than one of them does?

    python -m experiments.ensemble_distillation

Trains some teachers on the labels, each from a start of its own, then students alone, students
that hear the first teacher only, and students that hear all of them at once: Hinton's
distillation is then the mean over teachers, the objective of every other method the sum, as
published for contrastive representation distillation. All runs have one recipe, and a run that
was killed goes on by the same command. By default on the embedded digits; README.md beside this
file has a study on photographs.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _comparison, _methods, _recipe, _run, _workshop
from fdjax import checks, metrics
from fdjax.types import Variables

MEASURE = "accuracy"
TOGETHER = "the teachers' mean prediction"


@dataclasses.dataclass(frozen=True)
class Config(_recipe.RecipeConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/ensemble", "Folder of results, checkpoints and report.")
    teachers: tuple[str, ...] = _run.flag(
        ("resnet20", "resnet20", "resnet20"), "Networks of the teachers; two at least."
    )
    methods: tuple[str, ...] = _run.flag(
        ("kd", "attention", "similarity", "crd", "crd+kd"), _comparison.METHODS_HELP
    )


def run(config: Config) -> dict[str, Any]:
    """Trains what is missing; returns what results.json holds."""
    _run.check(config)
    checks.require(
        len(config.teachers) >= 2,
        f"--teachers names {len(config.teachers)}; an ensemble has two at least, and one teacher "
        "is for experiments.compress.",
    )
    methods = _methods.parse_all(config.methods)
    task = _recipe.task(config)
    workshop = _workshop.Workshop(task, config)
    student, *teachers = map(workshop.learner, (config.student, *config.teachers))
    image = jax.ShapeDtypeStruct((1, *workshop.image_shape), jnp.float32)

    def all_of(variables: list[Variables]) -> _methods.Teachers:
        return _methods.of_several(teachers, variables, image)

    _comparison.check(workshop, student, methods, all_of(list(map(_workshop.shapes, teachers))))
    book = _comparison.ledger(config, digest=task.digest)
    record = _run.Run(config)
    book.begin()
    folder = record.workdir / "networks"

    @functools.cache
    def taught() -> list[Variables]:
        return [
            _workshop.train_teacher(workshop, own, folder / f"teacher-{number}", number=number)
            for number, own in enumerate(teachers)
        ]

    def measured(variables: Variables) -> dict[str, float]:
        return {MEASURE: workshop.accuracy(student.use, variables)}

    def accuracy_of(number: int) -> dict[str, float]:
        return {MEASURE: workshop.accuracy(teachers[number].use, taught()[number])}

    def accuracy_together() -> dict[str, float]:
        mean = jnp.zeros((len(task.test), task.num_classes))
        for own, variables in zip(teachers, taught(), strict=True):
            outputs = workshop.outputs(own.use, variables, workshop.test)
            logits = jnp.concatenate([each.logits for each in outputs])
            mean = mean + jax.nn.softmax(logits) / len(teachers)
        return {MEASURE: float(metrics.accuracy(mean, jnp.asarray(task.test.labels)))}

    references = _comparison.reference(TOGETHER, config.seed, accuracy_together)
    for number in range(len(teachers)):
        references |= _comparison.reference(
            f"{_comparison.TEACHER} {number}",
            config.seed,
            functools.partial(accuracy_of, number),
        )
    rows = _comparison.alone(workshop, student, measured, folder)
    rows |= _comparison.students(
        workshop,
        student,
        methods,
        lambda: _methods.of_one(teachers[0], taught()[0]),
        measured,
        folder,
        form="{}, one teacher",
    )
    rows |= _comparison.students(
        workshop,
        student,
        methods,
        lambda: all_of(taught()),
        measured,
        folder,
        form=f"{{}}, {len(teachers)} teachers",
    )
    _comparison.fill(record, book, references | rows, [MEASURE])
    table = _comparison.table(book, rows, config, [MEASURE])
    reached = {
        name: _comparison.value(book, name, config.seed, MEASURE) for name in sorted(references)
    }
    heard = ", ".join(f"{name} {100 * number:.1f} %" for name, number in reached.items())
    note = (
        f"{len(task.train)} training images, {len(task.test)} images that judge ({config.judge}); "
        f"{heard}."
    )
    title = f"{len(teachers)} teachers of one {config.student} on {task.name}"
    _comparison.report(
        "experiments.ensemble_distillation", config, record, title, table, [MEASURE], [note]
    )
    return record.finish({"table": table, "teachers": reached})


if __name__ == "__main__":
    _run.main(run, Config)
