"""All examples of all teachers as ONE ott-jax problem, solved at matrix-product speed.

The examples of a teacher share one cost matrix. Stacked as blocks [teachers, examples,
labels], their marginals form one big problem whose kernel is block diagonal with one small
matrix repeated, so applying it is one matrix product. ott-jax's own Sinkhorn loop then runs
once for all of them. Costs and potentials here are in units of epsilon.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

HIGHEST = jax.lax.Precision.HIGHEST  # TF32 products stop Sinkhorn from converging.
_LARGEST = 2**20  # numbers in a block of log-sum-exp: it stays in the cache of a processor
RESTING = 0.0  # over-relaxation of an example that is done: it keeps its scalings


@jax.tree_util.register_pytree_node_class
class DirectSum(geometry.Geometry):
    """Geometry of the direct sum; its vectors are flattened blocks [teachers, examples, labels]."""

    def __init__(
        self,
        cost: Float[Array, "teachers source target"],
        kernel: Float[Array, "teachers source target"],
        examples: int,
    ):
        super().__init__(epsilon=1.0)
        self.block_cost, self.block_kernel, self.examples = cost, kernel, examples

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes of the two flattened vectors."""
        teachers, source, target = self.block_cost.shape
        return teachers * self.examples * source, teachers * self.examples * target

    @property
    def dtype(self) -> Any:
        """Type of the cost, which is the type of the whole computation."""
        return self.block_cost.dtype

    def blocks(self, vector: Float[Array, " flat"]) -> Float[Array, "teachers examples labels"]:
        """The flat vector of ott-jax as one row an example."""
        return vector.reshape(self.block_cost.shape[0], self.examples, -1)

    def apply_kernel(self, vec: Any, eps: Any = None, axis: int = 0) -> Any:
        """One matrix product a teacher: K v (axis 1) or K' u (axis 0) of every example."""
        del eps  # always one: costs are in units of epsilon
        return apply_kernel(self.block_kernel, self.blocks(vec), axis).reshape(-1)

    def apply_lse_kernel(self, f: Any, g: Any, eps: Any, vec: Any = None, axis: int = 0) -> Any:
        """Log of `apply_kernel` of the exponentials, without underflow."""
        del eps, vec
        potential = g if axis == 1 else f
        return apply_lse_kernel(self.block_cost, self.blocks(potential), axis).reshape(-1), None

    def tree_flatten(self) -> tuple[Any, Any]:
        """Arrays are children, the number of examples is structure."""
        return (self.block_cost, self.block_kernel), self.examples

    @classmethod
    def tree_unflatten(cls, aux_data: Any, children: Any) -> "DirectSum":
        """Inverse of `tree_flatten`."""
        cost, kernel = children
        return cls(cost, kernel, aux_data)


def apply_kernel(
    kernel: Float[Array, "teachers source target"],
    scaling: Float[Array, "teachers examples labels"],
    axis: int,
) -> Float[Array, "teachers examples other_labels"]:
    """K v for axis 1, K' u for axis 0, for every example of every teacher."""
    matrix = jnp.swapaxes(kernel, -1, -2) if axis == 1 else kernel
    if kernel.shape[0] == 1:  # XLA runs a plain product faster than a batch of one
        return jnp.matmul(scaling[0], matrix[0], precision=HIGHEST)[None]
    return jnp.matmul(scaling, matrix, precision=HIGHEST)


def apply_lse_kernel(
    cost: Float[Array, "teachers source target"],
    potential: Float[Array, "teachers examples labels"],
    axis: int,
) -> Float[Array, "teachers examples other_labels"]:
    """log K exp(potential), K = exp(-cost), for every example of every teacher."""
    matrix = cost if axis == 1 else jnp.swapaxes(cost, -1, -2)

    def example(potential: Array) -> Array:
        exponent = potential[:, None, :] - matrix
        highest = exponent.max(axis=-1)
        safe = jnp.where(jnp.isfinite(highest), highest, 0.0)
        return safe + jnp.log(jnp.exp(exponent - safe[..., None]).sum(axis=-1))

    return over_examples(example, cost.size, potential)


def over_examples(
    function: Callable[..., Array], size: int, *arrays: Float[Array, "teachers examples ..."]
) -> Float[Array, "teachers examples ..."]:
    """Maps a function of one example of every teacher over the examples, some at a time.

    The function makes arrays of `size` numbers an example; blocks of several examples keep
    below `_LARGEST` numbers.
    """
    moved = tuple(jnp.moveaxis(array, 1, 0) for array in arrays)
    at_once = max(1, min(moved[0].shape[0], _LARGEST // size))
    mapped = jax.lax.map(lambda example: function(*example), moved, batch_size=at_once)
    return jnp.moveaxis(mapped, 0, 1)


class _State(NamedTuple):
    """State of ott-jax's loop, with the error and the over-relaxation of every example."""

    potentials: tuple[Array, Array]
    errors: Array
    example_error: Float[Array, "teachers examples"]
    relaxation: Float[Array, "teachers examples"]

    @property
    def fu(self) -> Array:
        """Source potential or scaling, under the name that ott-jax reads."""
        return self.potentials[0]

    @property
    def gv(self) -> Array:
        """Target potential or scaling, under the name that ott-jax reads."""
        return self.potentials[1]


class _Sinkhorn(sinkhorn.Sinkhorn):
    """ott-jax's Sinkhorn, over-relaxed and stopped by the error of every single example.

    Its state is a `_State` throughout.
    """

    def init_state(self, ot_prob: Any, init: Any) -> Any:
        geom = ot_prob.geom
        shape = (geom.block_cost.shape[0], geom.examples)
        return _State(
            potentials=init,
            errors=-jnp.ones((self.outer_iterations, 1), geom.dtype),
            example_error=jnp.full(shape, jnp.inf, geom.dtype),
            relaxation=jnp.ones(shape, geom.dtype),
        )

    def kernel_step(self, ot_prob: Any, state: Any, iteration: Any) -> Any:
        geom, (u, v) = ot_prob.geom, state.potentials
        extra = state.relaxation[..., None] - 1

        def relaxed(old: Array, new: Array) -> Array:
            # new (new / old)^extra. Powers in quarters are square roots, cheaper than exp and
            # log; a label without mass stays without.
            old, new = geom.blocks(old), geom.blocks(new)
            root = jnp.sqrt(jnp.where((old > 0) & (new > 0), new / old, 1.0))
            halves = jnp.where(extra >= 0.5, root, 1.0)
            quarters = jnp.where(extra % 0.5 == 0.25, jnp.sqrt(root), 1.0)
            return jnp.where(extra < 0, old, new * halves * quarters).reshape(-1)

        v = relaxed(v, geom.update_scaling(u, ot_prob.b, iteration, axis=0))
        u = relaxed(u, geom.update_scaling(v, ot_prob.a, iteration, axis=1))
        return state._replace(potentials=(u, v))

    def lse_step(self, ot_prob: Any, state: Any, iteration: Any) -> Any:
        geom, (f, g) = ot_prob.geom, state.potentials
        extra = state.relaxation[..., None] - 1

        def relaxed(old: Array, new: Array) -> Array:
            old, new = geom.blocks(old), geom.blocks(new)
            change = jnp.where(jnp.isfinite(old) & jnp.isfinite(new), new - old, 0.0)
            return jnp.where(extra < 0, old, new + extra * change).reshape(-1)

        g = relaxed(g, geom.update_potential(f, g, jnp.log(ot_prob.b), iteration, axis=0))
        f = relaxed(f, geom.update_potential(f, g, jnp.log(ot_prob.a), iteration, axis=1))
        return state._replace(potentials=(f, g))

    def one_iteration(self, ot_prob: Any, state: Any, iteration: Any, compute_error: Any) -> Any:
        step = self.lse_step if self.lse_mode else self.kernel_step
        state = step(ot_prob, state, iteration)

        def check(state: _State) -> _State:
            error = self.example_errors(ot_prob, state.fu)
            place = iteration // self.inner_iterations
            relaxation = next_relaxation(
                state.relaxation, state.example_error, error, self.inner_iterations
            )
            if not self.lse_mode:
                state = state._replace(potentials=balanced(ot_prob.geom, *state.potentials))
            return state._replace(
                errors=state.errors.at[place, 0].set(error.max()),
                example_error=error,
                # An example that is done rests, so that its answer is its own, whatever
                # stands beside it in the batch.
                relaxation=jnp.where(error < self.threshold, RESTING, relaxation),
            )

        return jax.lax.cond(compute_error, check, lambda state: state, state)

    def example_errors(self, ot_prob: Any, fu: Array) -> Float[Array, "teachers examples"]:
        """L1 error of every source marginal once the target marginal is met exactly."""
        geom = ot_prob.geom
        if self.lse_mode:
            g = geom.update_potential(fu, fu, jnp.log(ot_prob.b), axis=0)
            marginal = geom.marginal_from_potentials(fu, g, axis=1)
        else:
            v = geom.update_scaling(fu, ot_prob.b, axis=0)
            marginal = geom.marginal_from_scalings(fu, v, axis=1)
        return jnp.abs(geom.blocks(marginal - ot_prob.a)).sum(axis=-1)


def balanced(geom: DirectSum, u: Array, v: Array) -> tuple[Array, Array]:
    """Scalings (u / t, v t), which have the same plan, of equal range in every example.

    Their product is bounded by the plan, but each alone may drift out of the float range.
    """
    blocks = geom.blocks(u), geom.blocks(v)
    middle_u, middle_v = (
        jnp.log(x.max(axis=-1)) + jnp.log(jnp.where(x > 0, x, jnp.inf).min(axis=-1)) for x in blocks
    )
    factor = jnp.exp((middle_u - middle_v) / 4)[..., None]
    factor = jnp.where(jnp.isfinite(factor) & (factor > 0), factor, 1.0)
    return (blocks[0] / factor).reshape(-1), (blocks[1] * factor).reshape(-1)


def next_relaxation(
    relaxation: Float[Array, "*examples"],
    before: Float[Array, "*examples"],
    after: Float[Array, "*examples"],
    iterations: int,
) -> Float[Array, "*examples"]:
    """Over-relaxation for the next iterations, from how fast the last ones converged.

    Near the solution Sinkhorn is a block Gauss-Seidel iteration with linear rate s. With
    over-relaxation w the rate r obeys (r + w - 1)^2 = r w^2 s, so that s follows from the
    observed r, and w = 2 / (1 + sqrt(1 - s)) is best. At or above the best w the rate is
    w - 1 and tells nothing of s: w is kept. Where the error grew, w goes half-way back to one.

    Args:
        relaxation: In use so far, in [1, 2).
        before: Error of each example at the last check.
        after: Error of each example now.
        iterations: Between the two.

    Returns:
        The new over-relaxation, in quarters (see `_Sinkhorn.kernel_step`) and at most 1.75:
        more gains little near the solution and can fail far from it.

    References:
        Young, Iterative Solution of Large Linear Systems, 1971, ch. 6; Thibault et al.,
        Overrelaxed Sinkhorn-Knopp, 2021; Lehmann et al., A note on overrelaxation, 2022.
    """
    rate = (after / before) ** (1.0 / iterations)
    plain = (rate + relaxation - 1) ** 2 / jnp.where(rate > 0, rate * relaxation**2, 1.0)
    best = 2 / (1 + jnp.sqrt(1 - jnp.clip(plain, 0.0, 1.0)))
    useful = (rate > relaxation - 1) & (rate < 1)
    chosen = jnp.where(rate >= 1, (1 + relaxation) / 2, jnp.where(useful, best, relaxation))
    return jnp.clip(jnp.round(4 * chosen) / 4, 1.0, 1.75)


# ott-jax hands its solver through transformations that take it apart and rebuild it.
jax.tree_util.register_pytree_node(
    _Sinkhorn,
    lambda solver: solver.tree_flatten(),
    lambda aux, children: _Sinkhorn.tree_unflatten(aux, children),
)


def check_interval(max_iterations: int) -> int:
    """Iterations between two checks: the largest divisor of `max_iterations` up to 10.

    ott-jax runs whole intervals only; were it not a divisor, more or fewer iterations
    than asked would run.
    """
    return next(
        size for size in range(min(10, max_iterations), 0, -1) if max_iterations % size == 0
    )


def iterate(
    cost: Float[Array, "teachers source target"],
    kernel: Float[Array, "teachers source target"],
    source: Float[Array, "teachers examples source"],
    target: Float[Array, "teachers examples target"],
    start: Float[Array, "teachers examples source"],
    *,
    log_domain: bool,
    threshold: float,
    max_iterations: int,
) -> tuple[Float[Array, "teachers examples source"], Any]:
    """Runs ott-jax's Sinkhorn loop until the worst example is below `threshold`.

    Args:
        cost: Cost in units of epsilon; read in the log domain only.
        kernel: exp(-cost); read in kernel mode only.
        source: Masses of the teacher labels.
        target: Masses of the student labels.
        start: First source scaling (kernel mode) or potential (log domain).
        log_domain: Whether potentials or scalings are iterated.
        threshold: Largest L1 error of the source marginal of an example, with the target
            marginal met exactly.
        max_iterations: Bound on the number of iterations.

    Returns:
        The source potential in units of epsilon (the logarithm of the scaling in kernel
        mode), -inf where an example has no mass; and the number of iterations.
    """
    geom = DirectSum(cost, kernel, source.shape[1])
    problem = linear_problem.LinearProblem(geom, source.reshape(-1), target.reshape(-1))
    interval = check_interval(max_iterations)
    solver = _Sinkhorn(
        lse_mode=log_domain,
        threshold=threshold,
        inner_iterations=interval,
        max_iterations=max_iterations,
    )
    # ott-jax reads only the source side of the start: its first update makes the target side.
    rest = jnp.zeros_like(target) if log_domain else jnp.ones_like(target)
    output = solver(problem, init=(start.reshape(-1), rest.reshape(-1)))
    return geom.blocks(output.f), interval * jnp.sum(output.errors != -1)
