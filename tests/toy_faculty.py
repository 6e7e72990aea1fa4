"""A data set file and a faculty of two untrained teachers, for tests of what experiments do."""

import json
from pathlib import Path

import jax
import numpy as np
from test_experiments import write_npz

from experiments import _grid, _task
from fdjax import data, faculty, models

FULL, PART = "full", "part"


def make(folder):
    """Flags of an experiment on random halves of four classes; `FULL` knows all, `PART` three."""
    task = data.synthetic(num_classes=4, height=4, width=4, train_per_class=40, test_per_class=10)
    path, root = write_npz(folder / "toy.npz", task), folder / "faculty"
    faculty.create(root)
    for seed, (name, classes) in enumerate({FULL: 4, PART: 3}.items()):
        model = models.create("mlp", classes)
        card = faculty.Card(
            name=name,
            architecture="mlp",
            class_names=task.class_names[:classes],
            source_task=path.stem,
            preprocessing=data.native_preprocessing(_task.halves(task)[0]),
        )
        variables = models.initialise(model, jax.random.key(seed), (4, 4, 1))
        faculty.register(root, card, variables)
    return {
        "root": str(root),
        "dataset": str(path),
        "shots": 4,
        "student": "mlp",
        "steps": 12,
        "batch_size": 24,
        "labelled": 8,
    }


def grid(folder, **flags):
    """Flags of a small grid of students, judged by the unlabelled images."""
    return make(folder) | {"num_tasks": 1, "seeds": 2, "judge": "unlabelled"} | flags


def written(workdir):
    """Value of each student in a grid's file, by task, objective, teacher and seed."""
    lines = (Path(workdir) / "runs.jsonl").read_text().splitlines()[1:]
    found = [json.loads(line) for line in lines]
    assert all(0 <= line["value"] <= 1 for line in found)
    values = {_grid.Job(*(line[key] for key in _grid.Job._fields)): line["value"] for line in found}
    assert len(values) == len(lines), "every student is written down once"
    return values


def gain(values, task, objective, teacher, seeds=(0, 1)):
    """Mean over seeds of what a teacher's students have above those without one."""
    return np.mean(
        [
            values[task, objective, teacher, seed] - values[task, "alone", "(none)", seed]
            for seed in seeds
        ]
    )
