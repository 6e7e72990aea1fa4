"""All examples of all teachers as ONE ott-jax problem, solved at matrix-product speed.

The examples of a teacher share one cost matrix. Stacked as blocks [teachers, labels, examples],
their marginals form one big problem whose kernel is block diagonal with one small matrix
repeated, so applying it is one matrix product (fastest with an example a column). ott-jax's own
Sinkhorn loop then runs once for all of them. Costs and potentials here are in units of epsilon.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

from fdjax.transport.relaxation import RESTING, next_relaxation, relaxed

HIGHEST = jax.lax.Precision.HIGHEST  # TF32 products stop Sinkhorn from converging.


@jax.tree_util.register_pytree_node_class
class DirectSum(geometry.Geometry):
    """Geometry of the direct sum; its vectors are blocks [teachers, labels, examples].

    ott-jax does not mind that they are not flat, and loops over blocks are vectorised better.
    """

    def __init__(self, kernels: tuple[Array, Array], examples: int):
        super().__init__(epsilon=1.0)
        self.kernels, self.examples = kernels, examples

    @property
    def block_kernel(self) -> Float[Array, "teachers source target"]:
        """The small matrix of every teacher."""
        return self.kernels[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes of the two flattened vectors."""
        teachers, source, target = self.block_kernel.shape
        return teachers * self.examples * source, teachers * self.examples * target

    @property
    def dtype(self) -> Any:
        """Type of the kernel, which is the type of the whole computation."""
        return self.block_kernel.dtype

    def apply_kernel(self, vec: Any, eps: Any = None, axis: int = 0) -> Any:
        """One matrix product a teacher: K v (axis 1) or K' u (axis 0) of every example."""
        del eps  # always one: costs are in units of epsilon
        return apply(self.kernels[axis], vec)

    def tree_flatten(self) -> tuple[Any, Any]:
        """The kernels are children, the number of examples is structure."""
        return self.kernels, self.examples

    @classmethod
    def tree_unflatten(cls, aux_data: Any, children: Any) -> "DirectSum":
        """Inverse of `tree_flatten`."""
        return cls(tuple(children), aux_data)


def both_ways(kernel: Float[Array, "teachers source target"]) -> tuple[Array, Array]:
    """(K', K): in a loop XLA would transpose the kernel anew for every product."""
    return jnp.swapaxes(kernel, -1, -2), kernel


def apply(
    matrix: Float[Array, "teachers rows labels"],
    scaling: Float[Array, "teachers labels examples"],
) -> Float[Array, "teachers rows examples"]:
    """The matrix of each teacher times the columns of all its examples."""
    if scaling.shape[-1] == 1:  # XLA runs matrix-vector products faster as such
        return jnp.einsum("tij,tj->ti", matrix, scaling[..., 0], precision=HIGHEST)[..., None]
    if matrix.shape[0] == 1:  # and a plain product faster than a batch of one
        return jnp.matmul(matrix[0], scaling[0], precision=HIGHEST)[None]
    return jnp.matmul(matrix, scaling, precision=HIGHEST)


class State(NamedTuple):
    """State of ott-jax's loop, with what belongs to every single example.

    Attributes:
        potentials: Scalings (u, v); the name is ott-jax's.
        product: K v, from which the next source scaling follows.
        errors: Largest error at every check; ott-jax's record, by which it stops.
        example_error: L1 error of the source marginal at the last check.
        lost: Examples that this way of computing did not hold at the last check.
        relaxation: Over-relaxation in use.
        iterations: Run before the example was done.
        memory: What the way of computing carries along; see `Sinkhorn.refresh`.
    """

    potentials: tuple[
        Float[Array, "teachers source examples"], Float[Array, "teachers target examples"]
    ]
    product: Float[Array, "teachers source examples"]
    errors: Float[Array, "checks 1"]
    example_error: Float[Array, "teachers examples"]
    lost: Bool[Array, "teachers examples"]
    relaxation: Float[Array, "teachers examples"]
    iterations: Int[Array, "teachers examples"]
    memory: Any

    @property
    def fu(self) -> Array:
        """Source scaling, under the name that ott-jax reads."""
        return self.potentials[0]

    @property
    def gv(self) -> Array:
        """Target scaling, under the name that ott-jax reads."""
        return self.potentials[1]


class Refreshed(NamedTuple):
    """Scalings for the same plan, but for the target marginal, which is now met exactly.

    Attributes:
        u: Source scaling.
        v: Target scaling.
        product: K v.
        lost: Examples that this way of computing does not hold.
        memory: See `State`.
    """

    u: Float[Array, "teachers source examples"]
    v: Float[Array, "teachers target examples"]
    product: Float[Array, "teachers source examples"]
    lost: Bool[Array, "teachers examples"]
    memory: Any


class Sinkhorn(sinkhorn.Sinkhorn, abc.ABC):
    """ott-jax's Sinkhorn, over-relaxed and stopped by the error of every single example.

    What ott-jax calls an iteration is here a sweep: `interval` iterations and then a check, whose
    scalings, product and error belong together. The loop ends once no more than the share
    `leave` of the examples is left, which then are not worth a sweep of all. Subclasses keep
    the scalings within the float range.
    """

    def __init__(self, *, interval: int, leave: float = 0.0, **settings: Any):
        super().__init__(**settings)
        self.interval, self.leave = interval, leave

    def geometry(self, ot_prob: Any, state: State) -> DirectSum:
        """Whose kernel is applied."""
        del state
        return ot_prob.geom

    def source(self, ot_prob: Any, state: State) -> Array:
        """Marginal that the source scaling has to meet."""
        del state
        return ot_prob.a

    @abc.abstractmethod
    def refresh(self, ot_prob: Any, state: State) -> Refreshed:
        """Meets the target marginal exactly, which a check of the error needs."""

    def bounded(self, scaling: Array) -> Array:
        """A scaling that stays within the float range until it is refreshed."""
        return scaling

    def balanced(self, state: State) -> State:
        """The same plan after a check, with scalings that are fit for another sweep."""
        return state

    def init_state(self, ot_prob: Any, init: Any) -> Any:
        """The first state, as after a check, from scalings, product and memory in `init`."""
        (u, v), product, memory = init
        shape = (ot_prob.geom.block_kernel.shape[0], ot_prob.geom.examples)
        return State(
            potentials=(u, v),
            product=product,
            errors=-jnp.ones((self.outer_iterations, 1), v.dtype),
            example_error=jnp.full(shape, jnp.inf, v.dtype),
            lost=jnp.zeros(shape, bool),
            relaxation=jnp.ones(shape, v.dtype),
            iterations=jnp.zeros(shape, jnp.int32),
            memory=memory,
        )

    def one_iteration(self, ot_prob: Any, state: Any, iteration: Any, compute_error: Any) -> Any:
        """One sweep."""
        del compute_error  # true after every sweep

        def plain(_: Any, state: State) -> State:
            return self.kernel_step(ot_prob, state, iteration)

        state = self.balanced(self.source_step(ot_prob, state))
        state = jax.lax.fori_loop(0, self.interval - 1, plain, state)
        return self.check(ot_prob, state, iteration)

    def kernel_step(self, ot_prob: Any, state: Any, iteration: Any) -> Any:
        """One iteration: the target scaling is updated, then the source scaling."""
        del iteration
        geom, (u, v) = self.geometry(ot_prob, state), state.potentials
        product = geom.apply_kernel(u, axis=0)
        v = self.bounded(relaxed(ot_prob.b, product, v, state.relaxation[:, None]))
        product = geom.apply_kernel(v, axis=1)
        return self.source_step(ot_prob, state._replace(potentials=(u, v), product=product))

    def source_step(self, ot_prob: Any, state: State) -> State:
        """Half an iteration: the source scaling is updated from the product."""
        u, v = state.potentials
        mass = self.source(ot_prob, state)
        u = self.bounded(relaxed(mass, state.product, u, state.relaxation[:, None]))
        return state._replace(potentials=(u, v))

    def check(self, ot_prob: Any, state: State, sweep: Any) -> State:
        """Half an iteration, whose target update is exact, which tells the error."""
        u, v, product, lost, memory = self.refresh(ot_prob, state)
        state = state._replace(potentials=(u, v), product=product, memory=memory)
        error = jnp.abs(u * product - self.source(ot_prob, state)).sum(axis=-2)
        lost = lost | ~jnp.isfinite(error)
        chosen = next_relaxation(state.relaxation, state.example_error, error, self.interval)
        # An example that is done rests, so that its answer is its own, whatever stands beside
        # it in the batch; one that is lost is left to another way of computing.
        left = ~lost & (error >= self.threshold)
        # ott-jax stops at an error below the threshold.
        worst = jnp.where(left.mean() > self.leave, jnp.where(left, error, 0.0).max(), 0.0)
        resting = state.relaxation == RESTING
        return state._replace(
            errors=state.errors.at[sweep, 0].set(worst),
            example_error=error,
            lost=lost,
            relaxation=jnp.where(left, chosen, RESTING),
            iterations=state.iterations + jnp.where(resting, 0, self.interval),
        )

    def output_from_state(self, ot_prob: Any, state: Any) -> Any:
        """The scalings, where ott-jax would keep potentials, and the whole state."""
        output = super().output_from_state(ot_prob, state)
        return output.set(potentials=(*state.potentials, state))


def registered(solver: Any) -> Any:
    """Registers a solver class, as ott-jax takes solvers apart and rebuilds them."""
    jax.tree_util.register_pytree_node(
        solver,
        lambda instance: instance.tree_flatten(),
        lambda aux, children: solver.tree_unflatten(aux, children),
    )
    return solver


def check_interval(max_iterations: int) -> int:
    """Iterations between two checks: the largest divisor of `max_iterations` up to 10.

    ott-jax runs whole intervals only; were it not a divisor, more or fewer iterations
    than asked would run.
    """
    return next(
        size for size in range(min(10, max_iterations), 0, -1) if max_iterations % size == 0
    )


def iterate(
    solver: type[Sinkhorn],
    kernel: Float[Array, "teachers source target"],
    source: Float[Array, "teachers source examples"],
    target: Float[Array, "teachers target examples"],
    start: Any,
    *,
    threshold: float,
    max_iterations: int,
    leave: float = 0.0,
) -> State:
    """Runs ott-jax's Sinkhorn loop until the worst example is below `threshold`.

    Args:
        solver: How scalings are kept within the float range.
        kernel: Of every teacher, as the solver wants it at the start.
        source: Masses of the teacher labels.
        target: Masses of the student labels.
        start: First scalings (u, v), product K v, and memory of the solver.
        threshold: Largest L1 error of the source marginal of an example, with the target
            marginal met exactly.
        max_iterations: Bound on the number of iterations.
        leave: See `Sinkhorn`.

    Returns:
        The state at the last check.
    """
    geom = DirectSum(both_ways(kernel), source.shape[-1])
    problem = linear_problem.LinearProblem(geom, source, target)
    interval = check_interval(max_iterations)
    loop = solver(
        lse_mode=False,
        threshold=threshold,
        interval=interval,
        leave=leave,
        inner_iterations=1,
        max_iterations=max_iterations // interval,
    )
    output: Any = loop(problem, init=start)
    return output.potentials[-1]
