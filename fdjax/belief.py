"""Reference transport: what a student may believe once it has heard its teachers.

The transport problem of one example has the teacher's prediction p as source, a *free* target,
and the student's belief q as reference measure of the target side:

    min_P  <P, cost> + epsilon KL(P | p q^T)   over plans P with sum_c P[s, c] = p_s.

Its plan is closed: teacher label s divides its mass p_s in proportion to
q_c exp(-cost[s, c] / epsilon). That is Bayes' rule with q as prior and exp(-cost / epsilon) as
likelihood, and the target, sum_s P[s, .], is the belief updated by each label and averaged. A
teacher label that says nothing (a constant row) leaves the belief as it is.

In ott-jax's terms it is an unbalanced problem with `tau_a` = 1 and `tau_b` -> 0 on the cost
`cost - epsilon log q`: its kernel carries no reference measure, so the belief goes into the cost.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fdjax import checks

# More missing mass than the rounding of a softmax is silence.
_SILENCE = 1e-4


def log_update(
    log_belief: Float[Array, "batch student_classes"],
    teacher_probabilities: Float[Array, "batch teacher_classes"],
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    epsilon: float | Float[Array, ""] = 1.0,
) -> Float[Array, "batch student_classes"]:
    """Logarithm of the factor by which a teacher's prediction moves a belief.

        u_c = sum_s p_s exp(-cost[s, c] / epsilon) / sum_k q_k exp(-cost[s, k] / epsilon),

    so that sum_c q_c u_c = 1. Mass that the teacher does not give is silence and has the factor
    one: a teacher padded in all its labels, or with no word on an example, changes nothing.

    Args:
        log_belief: log q, up to a constant for each example; -inf where a class is impossible.
        teacher_probabilities: p, >= 0, summing to one, or to less where the teacher is silent.
        cost: Price of teacher label to student label; any constant may be added to a row.
        epsilon: Entropic regularisation in units of `cost`, > 0; large hears the teacher less.

    Returns:
        log u, finite.

    Raises:
        InputError: If the cost does not fit or `epsilon` is not positive.
    """
    checks.positive("epsilon", epsilon)
    checks.shape("cost", cost, (teacher_probabilities.shape[-1], log_belief.shape[-1]))
    # With a largest entry of zero in each row the sums cannot overflow.
    evidence = -cost / epsilon
    evidence = evidence - evidence.max(axis=-1, keepdims=True)
    belief = jax.nn.log_softmax(log_belief)
    heard = jax.nn.logsumexp(belief[:, None, :] + evidence, axis=-1)
    exponent = evidence - heard[..., None]
    mass = teacher_probabilities[..., None]
    silent = 1.0 - mass.sum(axis=1)
    silent = jnp.where(silent > _SILENCE, silent, 0.0)
    # A log-sum-exp over the teacher's labels weighted by their mass, and silence as one label
    # more; written out, so that XLA fuses it and stores no array of batch x labels x classes.
    top = jnp.where(mass > 0, exponent, -jnp.inf).max(axis=1)
    top = jax.lax.stop_gradient(jnp.where(silent > 0, jnp.maximum(top, 0.0), top))
    total = jnp.sum(mass * jnp.exp(jnp.minimum(exponent - top[:, None], 0.0)), axis=1)
    return top + jnp.log(total + silent * jnp.exp(jnp.minimum(-top, 0.0)))


def reference_target(
    student_log_probs: Float[Array, "batch student_classes"],
    teacher_probabilities: Float[Array, "batch teacher_classes"],
    cost: Float[Array, "teacher_classes student_classes"],
    *,
    epsilon: float | Float[Array, ""] = 1.0,
) -> Float[Array, "batch student_classes"]:
    """Student's belief after it has heard the teacher: the target marginal of the plan.

        t_c = sum_s p_s q_c exp(-cost[s, c] / epsilon) / sum_k q_k exp(-cost[s, k] / epsilon)

    With a uniform belief and `costs.from_predictions` it is the projected teacher of
    `costs.predictor`; with a belief that is certain it is that belief.

    Args:
        student_log_probs: log q, up to a constant. Times a number below one it is a belief less
            sure of itself.
        teacher_probabilities: As for `log_update`.
        cost: In nats where `epsilon` = 1, best with `costs.log_prior` added, for the belief knows
            the prior already.
        epsilon: As for `log_update`.

    Returns:
        A distribution over the student's classes.
    """
    update = log_update(student_log_probs, teacher_probabilities, cost, epsilon=epsilon)
    return jax.nn.softmax(student_log_probs + update)


def pooled_target(
    student_log_probs: Float[Array, "batch student_classes"],
    log_updates: Float[Array, "teachers batch student_classes"],
    weights: Float[Array, " teachers"],
) -> Float[Array, "batch student_classes"]:
    """Student's belief after it has heard several teachers: their updates multiply.

        t proportional to q prod_k u_k^weights[k]

    With one teacher of weight one it is `reference_target`, if the update was made against the
    same belief. Made against the prior, updates are evidence that does not depend on the belief,
    and `trust.fit` finds their weights.

    Args:
        student_log_probs: log q, up to a constant.
        log_updates: log u_k of each teacher, from `log_update`.
        weights: Trust in each teacher, >= 0; zero leaves it out.

    Returns:
        A distribution over the student's classes.

    References:
        Genest, Zidek, Combining probability distributions, Statistical Science 1986 (the
        logarithmic pool).
    """
    exact = jax.lax.Precision.HIGHEST
    heard = jnp.einsum("kbc,k->bc", log_updates, weights, precision=exact)
    return jax.nn.softmax(student_log_probs + heard)
