"""All examples of all teachers as ONE ott-jax problem, solved at matrix-product speed.

The examples of a teacher share one cost matrix. Stacked as blocks [teachers, examples,
labels], their marginals form one big problem whose kernel is block diagonal with one small
matrix repeated, so applying it is one matrix product. ott-jax's own Sinkhorn loop then runs
once for all of them. Costs and potentials here are in units of epsilon.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

HIGHEST = jax.lax.Precision.HIGHEST  # TF32 products stop Sinkhorn from converging.


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
    # XLA fuses the sum into both reductions: [examples, source, target] is never stored.
    exponent = potential[:, :, None, :] - matrix[:, None, :, :]
    highest = exponent.max(axis=-1)
    safe = jnp.where(jnp.isfinite(highest), highest, 0.0)
    return safe + jnp.log(jnp.exp(exponent - safe[..., None]).sum(axis=-1))


class _State(sinkhorn.SinkhornState):
    """Loop state whose error is that of the worst example, not the sum over all."""

    def solution_error(self, ot_prob: Any, norm_error: Any, **settings: Any) -> Any:
        del norm_error
        geom = ot_prob.geom
        marginal = (
            geom.marginal_from_potentials(self.fu, self.gv, axis=0)
            if settings["lse_mode"]
            else geom.marginal_from_scalings(self.fu, self.gv, axis=0)
        )
        error = jnp.abs(geom.blocks(marginal - ot_prob.b)).sum(axis=-1)
        return error.max(keepdims=True).reshape(1)


class _Sinkhorn(sinkhorn.Sinkhorn):
    """ott-jax's Sinkhorn, stopping when every example is below the threshold."""

    def init_state(self, ot_prob: Any, init: Any) -> _State:
        state = super().init_state(ot_prob, init)
        return _State(state.potentials, errors=state.errors)


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
        threshold: Largest L1 error of the target marginal of an example.
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
