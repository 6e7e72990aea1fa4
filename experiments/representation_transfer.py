r"""Are a distilled student's features better for other data than those of one trained alone?

    python -m experiments.representation_transfer
    python -m experiments.representation_transfer --dataset=cifar100 --transfer=stl10 \
      --image_size=32 --teacher=wrn_40_2 --student=wrn_16_2 --epochs=240

Trains a teacher and students on one data set, as experiments.compress does, then freezes each
student and fits a linear classifier on its features of another data set, whose images it never
saw and whose classes are others. The classifier is the optimum of a penalised logistic
regression, so it has no seed and no schedule. The table has the accuracy of each student on both
data sets. A run that was killed goes on by the same command. By default one half of the digits'
classes is the one data set and the other half the other; README.md beside this file has a study
on photographs.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments import _comparison, _methods, _probe, _recipe, _run, _task, _workshop
from fdjax import checks, data
from fdjax.types import Variables

OWN, OTHER = "own data", "other data"


@dataclasses.dataclass(frozen=True)
class Config(_recipe.RecipeConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/transfer", "Folder of results, checkpoints and report.")
    teacher: str = _run.flag("resnet20", "Teacher network.")
    transfer: str = _run.flag(
        "",
        "The other data set, in the forms of --dataset; if empty, the second half of the classes "
        "of --dataset is the other data, and students learn the first half only.",
    )
    probe_decay: float = _run.flag(
        1e-3, "Of the linear classifier, on standardised features.", low=1e-9
    )
    methods: tuple[str, ...] = _run.flag(
        ("kd", "hint", "attention", "crd", "crd+kd"), _comparison.METHODS_HELP
    )


def both_tasks(config: Config) -> tuple[data.Task, data.Task]:
    """What the students learn, and what their features are tried on."""
    own = _recipe.task(config)
    if config.transfer:
        whole = _task.load(config.transfer, config.data_dir, config.image_size)
        return own, _recipe.judged(whole, config.judge)
    middle = own.num_classes // 2
    checks.require(
        middle >= 2,
        f"--dataset={config.dataset} has {own.num_classes} classes, too few to divide; name "
        "another data set with --transfer.",
    )
    names = own.class_names
    return (
        data.restrict(own, names[:middle], name=f"{own.name}, first half of the classes"),
        data.restrict(own, names[middle:], name=f"{own.name}, second half of the classes"),
    )


def run(config: Config) -> dict[str, Any]:
    """Trains what is missing; returns what results.json holds."""
    _run.check(config)
    methods = _methods.parse_all(config.methods)
    task, other = both_tasks(config)
    workshop = _workshop.Workshop(task, config)
    student, teacher = map(workshop.learner, (config.student, config.teacher))
    shapes = _methods.of_one(teacher, _workshop.shapes(teacher))
    _comparison.check(workshop, student, methods, shapes)
    seen = [
        data.preprocess(part.images, workshop.preprocessing) for part in (other.train, other.test)
    ]
    book = _comparison.ledger(config, digest=task.digest, other=other.digest)
    record = _run.Run(config)
    book.begin()
    folder = record.workdir / "networks"

    @functools.cache
    def taught() -> Variables:
        return _workshop.train_teacher(workshop, teacher, folder / _comparison.TEACHER)

    def of(network: _workshop.Learner, variables: Variables) -> dict[str, float]:
        train, test = (workshop.features(network.use, variables, images) for images in seen)
        probe = _probe.accuracy(
            (train, np.asarray(other.train.labels)),
            (test, np.asarray(other.test.labels)),
            decay=config.probe_decay,
        )
        return {OWN: workshop.accuracy(network.use, variables), OTHER: probe}

    measured = functools.partial(of, student)
    references = _comparison.reference(
        _comparison.TEACHER, config.seed, lambda: of(teacher, taught())
    )
    rows = _comparison.alone(workshop, student, measured, folder) | _comparison.students(
        workshop, student, methods, lambda: _methods.of_one(teacher, taught()), measured, folder
    )
    _comparison.fill(record, book, references | rows, [OWN, OTHER])
    table = _comparison.table(book, rows, config, [OWN, OTHER])
    reached = {
        measure: _comparison.value(book, _comparison.TEACHER, config.seed, measure)
        for measure in (OWN, OTHER)
    }
    note = (
        f"Students learn {task.name} ({len(task.train)} images); their frozen features are tried "
        f"on {other.name} ({len(other.train)} images, {other.num_classes} classes). The teacher "
        f"has {100 * reached[OWN]:.1f} % and {100 * reached[OTHER]:.1f} %."
    )
    title = f"Features of {config.student} on other data"
    _comparison.report(
        "experiments.representation_transfer", config, record, title, table, [OTHER, OWN], [note]
    )
    return record.finish({"table": table, _comparison.TEACHER: reached})


if __name__ == "__main__":
    _run.main(run, Config)
