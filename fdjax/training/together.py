"""Many students of one step in one compiled program, each as if it were alone."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.training.steps import Step, TrainState, Tree
from fdjax.types import Batch


def fit_together(
    step: Step,
    states: Sequence[TrainState],
    images: Float[Array | np.ndarray, "examples height width channels"],
    labels: Int[Array | np.ndarray, " examples"],
    rows: Int[np.ndarray, "students steps batch"],
    teachers: Sequence[Tree],
    *,
    name: str = "students",
) -> tuple[TrainState, ...]:
    """Trains several students side by side, all steps in one loop on the device.

    Each ends as `fit` would have it by itself, up to rounding: what differs between them must be
    in the arrays of their states and teachers, such as weights, trust and costs. They share
    kernels and launches, which is faster than one after the other for students of matrix products
    on a processor and for all small ones on an accelerator; convolutions become grouped ones,
    which processors do slowly.

    Args:
        step: From `make_step`.
        states: Of each student, from `init_state`; not donated.
        images: Preprocessed images of the data.
        labels: Class of each image; -1 where unlabelled.
        rows: Images of each batch, by their place in the data.
        teachers: What the step's `teach` reads, of each student; all of the same shapes.
        name: What the students are called where training fails.

    Returns:
        The state of each student after the last step.

    Raises:
        InputError: If there is no student, states or teachers differ in their shapes, or a
            student's parameters are not finite in the end.
    """
    checks.require(len(states) > 0, f"`states` holds none of the {name}; give one at least.")
    checks.shape("rows", rows, (len(states), None, None))
    checks.require(
        len(teachers) == len(states),
        f"`teachers` has {len(teachers)} entries for {len(states)} students; give one for each.",
    )
    whole = _run(step, _stack("states", states), images, labels, rows, _stack("teachers", teachers))
    # Sliced here and not on the device, which would compile a slice of every leaf.
    whole = jax.tree.map(np.asarray, whole._replace(key=jax.random.key_data(whole.key)))
    key_type = jax.random.key_impl(states[0].key)
    ended = []
    for place in range(len(states)):
        state: TrainState = jax.tree.map(lambda leaf, place=place: leaf[place], whole)
        checks.require(
            all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables)),
            f"number {place} of the {name} diverged: a parameter is not finite after step "
            f"{int(state.step)}; lower the learning rate or the weight of the teacher.",
        )
        ended.append(state._replace(key=jax.random.wrap_key_data(state.key, impl=key_type)))
    return tuple(ended)


def _stack(name: str, trees: Sequence[Tree]) -> Tree:
    """One tree with a leading axis of students."""
    forms = {
        (jax.tree.structure(tree), tuple(jnp.shape(leaf) for leaf in jax.tree.leaves(tree)))
        for tree in trees
    }
    checks.require(
        len(forms) == 1,
        f"`{name}` of students that train together must have the same shapes; train those of "
        "other networks, teachers or objectives apart.",
    )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@partial(jax.jit, static_argnums=0)
def _run(
    step: Step, states: TrainState, images: Array, labels: Array, rows: Array, teachers: Tree
) -> TrainState:
    def advance(states: TrainState, rows: Array) -> tuple[TrainState, None]:
        def one(state: TrainState, rows: Array, teacher: Tree) -> TrainState:
            return step(state, Batch(images[rows], labels[rows], rows), teacher)[0]

        return jax.vmap(one)(states, rows, teachers), None

    return jax.lax.scan(advance, states, jnp.moveaxis(rows, 1, 0))[0]
