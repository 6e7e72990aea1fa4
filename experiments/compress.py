"""Which objective compresses one network into a smaller one that knows the same labels?

    python -m experiments.compress
    python -m experiments.compress --flagfile=experiments/studies/cifar100.flags

Trains a teacher on the labels, then students alone and by several methods: Hinton's distillation,
contrastive representation distillation (CRD) and the objectives it was compared with (all of them
with --methods=all), each with its published weights and, where it has one, its first stage.
Teacher and student see the same changed images in each step. The number of a student is its
accuracy after the last epoch, not its best one. Each finished student is a line of runs.jsonl and
every network saves checkpoints: a run that was killed goes on by the same command, to the same
numbers.

The first command learns the embedded digits, on which all methods are about as good as the
student alone; the second is the published recipe, resnet32x4 to resnet8x4 on CIFAR-100, for a GPU.
README.md beside this file has a study on photographs, for two cores.
"""

import dataclasses
import functools
from typing import Any

from experiments import _comparison, _methods, _recipe, _run, _workshop
from fdjax.types import Variables

MEASURE = "accuracy"


@dataclasses.dataclass(frozen=True)
class Config(_recipe.RecipeConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/compress", "Folder of results, checkpoints and report.")
    teacher: str = _run.flag("resnet20", "Teacher network.")
    methods: tuple[str, ...] = _run.flag(
        ("kd", "hint", "attention", "similarity", "crd", "crd+kd"), _comparison.METHODS_HELP
    )
    untrained: tuple[str, ...] = _run.flag(
        (),
        "Methods of which there are students too whose teacher was never trained: what they gain "
        "is not the teacher's knowledge.",
    )


def run(config: Config) -> dict[str, Any]:
    """Trains what is missing; returns what results.json holds."""
    _run.check(config)
    methods = _methods.parse_all(config.methods)
    controls = _methods.parse_all(config.untrained) if config.untrained else []
    task = _recipe.task(config)
    workshop = _workshop.Workshop(task, config)
    student, teacher = map(workshop.learner, (config.student, config.teacher))
    shapes = _methods.of_one(teacher, _workshop.shapes(teacher))
    _comparison.check(workshop, student, [*methods, *controls], shapes)
    book = _comparison.ledger(config, without=["untrained"], digest=task.digest)
    record = _run.Run(config)
    book.begin()
    folder = record.workdir / "networks"

    @functools.cache
    def taught() -> Variables:
        return _workshop.train_teacher(workshop, teacher, folder / _comparison.TEACHER)

    def measured(variables: Variables) -> dict[str, float]:
        return {MEASURE: workshop.accuracy(student.use, variables)}

    references = _comparison.reference(
        _comparison.TEACHER,
        config.seed,
        lambda: {MEASURE: workshop.accuracy(teacher.use, taught())},
    )
    rows = _comparison.alone(workshop, student, measured, folder) | _comparison.students(
        workshop, student, methods, lambda: _methods.of_one(teacher, taught()), measured, folder
    )
    rows |= _comparison.students(
        workshop,
        student,
        controls,
        lambda: _methods.of_one(teacher, _workshop.untrained_teacher(workshop, teacher)),
        measured,
        folder,
        form="{}, untrained teacher",
    )
    _comparison.fill(record, book, references | rows, [MEASURE])
    table = _comparison.table(book, rows, config, [MEASURE])
    reached = _comparison.value(book, _comparison.TEACHER, config.seed, MEASURE)
    note = (
        f"{len(task.train)} training images, {len(task.test)} images that judge ({config.judge}); "
        f"the teacher has {100 * reached:.1f} %."
    )
    title = f"{config.teacher} to {config.student} on {task.name}"
    _comparison.report("experiments.compress", config, record, title, table, [MEASURE], [note])
    return record.finish({"table": table, _comparison.TEACHER: reached})


if __name__ == "__main__":
    _run.main(run, Config)
