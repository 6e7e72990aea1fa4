"""One of several processes that train a student together; `test_processes` starts it.

python rank_student.py ADDRESS PROCESSES PROCESS FOLDER

It leaves the trained state as npz, and ends by a failure of the last process.
"""

import functools
import sys

import jax
import numpy as np
import optax

from fdjax import data, models, objectives, processes, sharding, training
from fdjax.checks import InputError
from fdjax.types import Outputs

BATCH, STEPS = 8, 6
SORRY = "the last process has had enough"


def trained(folder, mesh=None):
    """State after a few steps of CRD with its bank and Hinton's distillation, by leaf.

    Interrupted after four steps, and resumed from the checkpoint of the first process.
    """
    task = data.synthetic(num_classes=3, height=3, width=3, train_per_class=8, test_per_class=1)
    images = task.train.images.astype(np.float32) / 255
    train, random = data.Split(images, task.train.labels), np.random.default_rng(0)
    rows = len(task.train)
    teacher = Outputs(
        random.normal(size=(rows, 5)).astype(np.float32),
        random.normal(size=(rows, 7)).astype(np.float32),
    )
    where = None if mesh is None else sharding.by_rows(mesh)
    objective = objectives.weighted_sum(
        (1.0, objectives.cross_entropy()),
        (0.8, objectives.crd(task.train.labels, negatives=6, embedding_size=4, sharding=where)),
    )
    model = models.create("mlp", 3, widths=(8,))
    student, optimiser = models.trainable(model), optax.sgd(0.1, momentum=0.9)
    step = training.make_step(student, training.observed, objective, optimiser)
    share = jax.process_index(), jax.process_count()

    def batches(start):
        parts = data.batches(train, BATCH, seed=0, start=start, share=share)
        return parts if mesh is None else (sharding.joined(part, mesh) for part in parts)

    for steps in (4, STEPS):
        state = training.init_state(
            jax.random.key(0),
            models.initialise(model, jax.random.key(1), (3, 3, 1)),
            student,
            training.observed,
            objective,
            optimiser,
            next(data.batches(train, BATCH, seed=0)),
            teacher,
        )
        if mesh is not None:
            state, teacher = sharding.put_rest((state, teacher), sharding.everywhere(mesh))
        state, _ = training.fit(
            step, state, batches, teacher, steps=steps, folder=folder, resume=True, progress=False
        )
    state = state._replace(key=jax.random.key_data(state.key))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): sharding.on_host(leaf) for path, leaf in leaves}


def main(address, count, process, folder):
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    jax.config.update("jax_num_cpu_devices", 1)
    processes.join(address, int(count), int(process))
    first = functools.partial(np.full, (2, 3))
    told = processes.from_first({"a": first(float(process)), "b": np.int64(2**40 + int(process))})
    np.testing.assert_array_equal(told["a"], first(0.0))
    assert told["a"].dtype == np.float64 and told["b"] == 2**40
    assert processes.text_of_first("x" * (1 + 2 * int(process))) == "x"
    processes.agree("words", "the same")
    own = f"{folder}/{process}"
    np.savez(f"{own}.npz", **trained(own, sharding.device_mesh("batch")))
    try:
        processes.agree("words", "the same" if process == "0" else "others")
        processes.meet("where the last process never comes")
    except InputError as error:
        processes.fail(f"{SORRY}: {error}", 7)


if __name__ == "__main__":
    main(*sys.argv[1:])
