"""PAC-Bayesian bounds of the error that a new last layer for the task would have."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.scores import _regression as regression
from fdjax.scores._labelled import HIGHEST, class_sums, labelled
from fdjax.types import TeacherOutputs

# Variational steps of the published code: part of the definition, for they do not converge.
STEPS = 10


def pactran(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    prior: Literal["dirichlet", "gamma"] = "dirichlet",
    strength: float = 1.0,
) -> Float[Array, ""]:
    """PACTran of the teacher's predictions: minus a bound of the error of a relabelling.

    The label of an example is drawn from a distribution that belongs to its (hidden) teacher
    label. Those distributions have a prior, and the bound is found by ten variational steps as
    in the reference code. That code adds 1e-10 to probabilities so that their logarithm exists;
    here a probability of zero has no part in the example instead.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.
        prior: Of the distributions, "dirichlet", or "gamma" for masses that need not sum to
            one; both around the class frequencies.
        strength: Virtual examples of each teacher label that the prior is worth, > 0.

    Returns:
        The score in nats an example and class; NaN for fewer than two classes.

    Raises:
        InputError: If a setting does not fit or a label is out of range.

    References:
        Ding et al., PACTran: PAC-Bayesian Metrics for Estimating the Transferability of
        Pretrained Models to Classification Tasks, ECCV 2022.
    """
    checks.choice("prior", prior, ("dirichlet", "gamma"))
    checks.positive("strength", strength)
    checks.labels("labels", labels, num_classes, unlabelled=True)
    member = jax.nn.one_hot(labels, num_classes, dtype=outputs.probabilities.dtype)
    known = labels[:, None] >= 0
    probabilities = jnp.where(known, outputs.probabilities, 0.0)
    counts = member.sum(axis=0)
    present = (counts > 0)[:, None]
    examples, classes = jnp.maximum(counts.sum(), 1.0), jnp.sum(counts > 0)
    # A class without an example has no mass; one keeps its functions finite until they cancel.
    masses = jnp.where(present, strength * counts[:, None] / examples, 1.0)
    possible = probabilities > 0
    log_probabilities = jnp.log(jnp.where(possible, probabilities, 1.0))

    def step(_: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        posterior = masses + class_sums(state[1], member)
        log_weight = digamma(posterior)
        if prior == "dirichlet":
            log_weight -= digamma(jnp.sum(posterior, axis=0, where=present))
        logits = log_probabilities + jnp.matmul(member, log_weight, precision=HIGHEST)
        # Rows without any possible label must not divide zero by zero.
        hidden = jax.nn.softmax(logits, axis=-1, where=possible | ~known)
        return posterior, jnp.where(possible, hidden, 0.0)

    start = (jnp.broadcast_to(masses, (num_classes, probabilities.shape[1])), probabilities)
    posterior, hidden = jax.lax.fori_loop(0, STEPS, step, start)
    log_hidden = jnp.log(jnp.where(hidden > 0, hidden, 1.0))
    surprise = jnp.sum(hidden * (log_hidden - log_probabilities))
    terms = jnp.sum(gammaln(masses) - gammaln(posterior), where=present)
    if prior == "dirichlet":
        total = jnp.sum(posterior, axis=0, where=present)
        bound = jnp.sum(gammaln(total) - gammaln(jnp.sum(masses, where=present)))
        bound = (bound + terms + surprise) / (examples * classes)
    else:
        mass = jnp.sum(posterior, axis=0, where=present)
        expected = jnp.matmul(probabilities, mass, precision=HIGHEST)
        logs = jnp.sum(jnp.log(jnp.where(known[:, 0], expected, 1.0)) - known[:, 0])
        bound = (terms + surprise + logs) / (examples * classes) + 1
    unknown = jnp.isnan(probabilities).any()
    return jnp.where((classes > 1) & ~unknown, -bound, jnp.nan)


def pactran_gaussian(
    outputs: TeacherOutputs,
    labels: Int[Array, " examples"],
    num_classes: int,
    *,
    strength: float = 10.0,
    variance: float = 100.0,
) -> Float[Array, ""]:
    """PACTran of the teacher's features: minus a bound of the error of a new last layer.

    The layer is fitted to the end by regression with a penalty of its squared weights; the
    bound adds a part that grows with the curvature at the optimum. As in the reference code
    features are centred, and the curvature is summed over the examples where the error is
    their mean. A feature that never varies does not count. Single precision agrees with double
    to 4e-5.

    Args:
        outputs: What the teacher says of the examples.
        labels: Class of each example; unlabelled ones (-1) take no part.
        num_classes: Number of classes of the task; those without an example do not count.
        strength: The penalty is the sum of squared weights over 2 `strength` examples, > 0.
        variance: Of the prior of the weights, in units of one over the number of features,
            > 0; with it grows the part of the curvature. The reference code has 1,000 and 100
            at strength 10, 100 and 10 at 1, 10 and 1 at 0.1.

    Returns:
        The score in nats an example; NaN for a black box, features that do not vary and fewer
        than two classes.

    Raises:
        InputError: If a setting is not positive or a label is out of range.

    References:
        Ding et al., PACTran: PAC-Bayesian Metrics for Estimating the Transferability of
        Pretrained Models to Classification Tasks, ECCV 2022.
    """
    checks.positive("strength", strength)
    checks.positive("variance", variance)
    sample = labelled(outputs, labels, num_classes)
    examples, width = jnp.maximum(sample.examples, 1.0), jnp.maximum(sample.width, 1.0)
    classes = jnp.maximum(jnp.sum(sample.counts > 0), 1)
    decay = 1 / (strength * examples)
    layer = regression.fit(sample.features, sample.member, decay)
    values = regression.logits(layer, sample.features, sample.member)
    error = regression.cross_entropy(values, sample.member) + decay / 2 * jnp.sum(layer[0] ** 2)
    weights, biases = regression.curvature(values, sample.features, sample.member)
    flatness = examples * (weights.sum() + biases.sum()) / (decay * width * classes)
    bound = error + classes * decay * variance / 2 * jnp.log1p(flatness)
    return jnp.where(sample.defined, -bound, jnp.nan)
