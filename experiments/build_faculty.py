"""What can a faculty be? Train teachers on parts of label spaces and keep them on disk.

    python -m experiments.build_faculty --root=runs/faculty --datasets=digits

Each teacher is trained on a random subset of the classes of one data set, on the teachers'
half of its training images (targets are taken from the other half), so that label spaces and
worth differ. A teacher that is registered already is left as it is: a run that was stopped
goes on where it was. With --confidence a teacher learns only from the images that it gets wrong
or is not as sure of, and how often each took part is kept beside its card: their significance for
students of the same data set. Twelve teachers of the embedded digits take about twenty seconds on
two cores; the accuracies on their own classes are 0.96 to 1.00. With --gc nothing is trained, but
the observations that the faculty keeps are counted, and those of former teachers removed.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _run, _student, _task
from fdjax import checks, data, faculty, models, objectives, reports, training


@dataclasses.dataclass(frozen=True)
class Config:
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/build_faculty", "Folder of the record of the run.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    datasets: tuple[str, ...] = _run.flag(
        ("digits",), "Data sets: TFDS names, digits, NAME.npz files or folders of class folders."
    )
    data_dir: str | None = _run.flag(None, "Where TFDS keeps its data.")
    image_size: int = _run.flag(
        0, "Side in pixels to which images are resized, for speed; 0 leaves them.", low=0
    )
    num_teachers: int = _run.flag(12, "Teachers of each data set.", low=1, high=100_000)
    classes_per_teacher: tuple[int, ...] = _run.flag(
        (),
        "Numbers of classes, taken in turn; if empty, those of --class_shares.",
        low=2,
    )
    class_shares: tuple[float, ...] = _run.flag(
        (0.2, 0.4, 0.6, 0.8, 1.0),
        "Shares of all classes of a data set, taken in turn; two classes at least.",
        low=0.0,
        high=1.0,
    )
    architectures: tuple[str, ...] = _run.flag(
        ("convnet", "mlp"), "Networks, taken in turn: mlp, convnet, resnet."
    )
    steps: int = _run.flag(300, "Training steps of each teacher.", low=1)
    batch_size: int = _run.flag(64, "Images a step.", low=1)
    learning_rate: float = _run.flag(2e-3, "Of Adam, at the start of a half cosine.", low=0.0)
    confidence: float | None = _run.flag(
        None,
        "Probability of the predicted class at which a right image rests, in self-regulated "
        "training; without it every image takes part always, uncounted.",
        low=0.0,
        high=1.0,
    )
    seed: int = _run.flag(0, "Seed of class subsets, networks and batches.", low=0)
    gc: bool = _run.flag(
        False,
        "Whether, instead, to tell what the kept observations take, and to remove those that "
        "nobody will read again.",
    )


def plan(task: data.Task, config: Config) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, architecture and class names of each teacher of a data set."""
    sizes = config.classes_per_teacher or tuple(
        max(2, round(share * task.num_classes)) for share in config.class_shares
    )
    checks.require(bool(sizes), "--class_shares is empty; name one share at least.")
    for size in sizes:
        checks.require(
            size <= task.num_classes,
            f"--classes_per_teacher asks for {size} classes, but {task.name} has "
            f"{task.num_classes}.",
        )
    rounds, teachers = len(config.architectures), []
    stem = "".join(c if c.isalnum() else "_" for c in task.name)[:60]
    for i in range(config.num_teachers):
        architecture = config.architectures[i % rounds]
        size = sizes[(i // rounds) % len(sizes)]
        order = np.random.default_rng([config.seed, i]).permutation(task.num_classes)
        chosen = tuple(task.class_names[c] for c in sorted(order[:size]))
        teachers.append(
            (f"{stem}-{i:03d}-{architecture}-{size}of{task.num_classes}", architecture, chosen)
        )
    return teachers


class Trained(NamedTuple):
    """A teacher of a task.

    Attributes:
        variables: Of its network.
        preprocessing: How it reads images.
        accuracy: On the task's test images.
        participation: Of each training image, if the training was self-regulated.
    """

    variables: Any
    preprocessing: data.Preprocessing
    accuracy: float
    participation: faculty.Participation | None


def train_teacher(task: data.Task, architecture: str, config: Config, seed: int) -> Trained:
    """Trains a teacher of a task."""
    school = _student.School(
        task,
        architecture,
        _student.Budget(config.steps, config.batch_size, 0, config.learning_rate),
        objectives.cross_entropy(),
        teach=training.no_teacher,
        confidence=config.confidence,
    )
    state, _ = school.teach_one(seed, None, school.objective, name=task.name)
    variables = jax.device_get(state.variables)
    took_part = None
    if state.counts is not None:
        took_part = faculty.Participation(np.asarray(state.counts), task.digest)
    return Trained(
        variables, data.native_preprocessing(task), school.accuracy(variables), took_part
    )


def collect_garbage(root: str) -> dict[str, Any]:
    """Removes observations of teachers that are gone or changed; tells what stays, and its cost."""
    removed, left = faculty.prune(root), faculty.holdings(root)
    rows = [
        {
            "observations": kind,
            "number": len(listed),
            "MB": sum(one.size for one in listed) / 1e6,
            "seconds to make": sum(one.seconds for one in listed),
        }
        for kind, listed in {"kept": left, "removed": removed}.items()
    ]
    reports.print_table(rows, f"Observations of the faculty at {root}")
    return {"observations": rows}


def run(config: Config) -> dict[str, Any]:
    """Builds what is missing of the faculty; returns and records the cards."""
    record = _run.Run(config)
    if config.gc:
        return record.finish(collect_garbage(config.root))
    for architecture in config.architectures:
        checks.choice("architectures", architecture, models.MODELS)
    loaded = [_task.load(name, config.data_dir, config.image_size) for name in config.datasets]
    tasks = [_task.halves(task)[0] for task in loaded]
    plans = [(task, teacher) for task in tasks for teacher in plan(task, config)]
    faculty.create(config.root)
    known = {card.name for card in faculty.cards(config.root)}
    with record.stage("build"):
        for number, (task, (name, architecture, classes)) in enumerate(plans):
            if name in known:
                continue
            part = data.restrict(task, classes, name=name)
            seed = config.seed * 100_003 + number
            trained = train_teacher(part, architecture, config, seed)
            card = faculty.Card(
                name=name,
                architecture=architecture,
                class_names=classes,
                source_task=task.name,
                preprocessing=trained.preprocessing,
                source_accuracy=trained.accuracy,
            )
            faculty.register(
                config.root, card, trained.variables, participation=trained.participation
            )
    cards = [card for card in faculty.cards(config.root) if card.name in {p[1][0] for p in plans}]
    rows = [
        {
            "teacher": card.name,
            "classes": ", ".join(card.class_names),
            "accuracy": card.source_accuracy,
            "parameters": card.num_parameters,
        }
        for card in cards
    ]
    reports.print_table(rows, f"Faculty at {config.root}")
    reports.write(
        record.workdir,
        "A faculty",
        [f"`{_run.command_line('experiments.build_faculty', config)}`", reports.table(rows)],
    )
    return record.finish({"teachers": rows})


if __name__ == "__main__":
    _run.main(run, Config)
