"""A data set file and a faculty of two untrained teachers, for tests of what experiments do."""

import jax
from test_experiments import write_npz

from experiments import _task
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
            source_task=task.name,
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
