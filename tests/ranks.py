"""One of several processes that score a faculty together; `test_sharding` starts it.

python ranks.py ADDRESS PROCESSES PROCESS DEVICES OUT
"""

import functools
import sys

import jax
import numpy as np

from fdjax import processes, scores, selection, sharding
from fdjax.types import TeacherOutputs

CLASSES = 3
TEACHERS = 7  # no multiple of the devices
LABELS = np.arange(24, dtype=np.int32) % CLASSES
SCORES = {
    "leep": scores.leep,
    "logme": scores.logme,
    "hscore": scores.hscore,
    "transport": functools.partial(scores.transport, level="task", epsilon=0.1),
}


def faculty():
    """Teachers of two sizes, so that there are two buckets."""

    def teacher(seed):
        random = np.random.default_rng(seed)
        labels = 4 if seed % 3 else 9
        return TeacherOutputs(
            probabilities=random.dirichlet(np.ones(labels), len(LABELS)).astype(np.float32),
            features=random.normal(size=(len(LABELS), 6)).astype(np.float32),
            class_vectors=random.normal(size=(labels, 6)).astype(np.float32),
            class_mask=np.ones(labels, bool),
        )

    return [teacher(seed) for seed in range(TEACHERS)]


def scored(mesh=None):
    """Every score of every teacher."""
    return {
        name: np.asarray(selection.score_faculty(score, faculty(), LABELS, CLASSES, mesh=mesh))
        for name, score in SCORES.items()
    }


def main(address, count, process, devices, out):
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_num_cpu_devices", int(devices))
    processes.join(address, int(count), int(process))
    mesh = sharding.device_mesh()
    assert mesh.size == int(count) * int(devices) and len(mesh.local_devices) == int(devices)
    np.savez(out, **scored(mesh))
    processes.part()


if __name__ == "__main__":
    main(*sys.argv[1:])
