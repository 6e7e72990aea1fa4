"""Published weights of each method beside cross-entropy and Hinton's distillation, in one place."""

from typing import NamedTuple

from fdjax import checks
from fdjax.objectives.base import Objective, weighted_sum
from fdjax.objectives.classification import cross_entropy, kd


class Weights(NamedTuple):
    """Weights of the three terms of a student's loss.

    Attributes:
        gamma: Of cross-entropy with the labels.
        alpha: Of Hinton's distillation.
        beta: Of the method.
    """

    gamma: float
    alpha: float
    beta: float


PRESETS: dict[str, Weights] = {
    "kd": Weights(0.1, 0.9, 0.0),
    "hint": Weights(1.0, 0.0, 100.0),
    "attention": Weights(1.0, 0.0, 1000.0),
    "similarity": Weights(1.0, 0.0, 3000.0),
    "correlation": Weights(1.0, 0.0, 0.02),
    "vid": Weights(1.0, 0.0, 1.0),
    "rkd": Weights(1.0, 0.0, 1.0),
    "pkt": Weights(1.0, 0.0, 30_000.0),
    # All their teaching is in a first stage, where their loss stands alone; see `staged`.
    "abound": Weights(1.0, 0.0, 0.0),
    "fsp": Weights(1.0, 0.0, 0.0),
    "factor": Weights(1.0, 0.0, 200.0),
    "nst": Weights(1.0, 0.0, 50.0),
    # The public script does not run it: one is a guess.
    "kdsvd": Weights(1.0, 0.0, 1.0),
    "crd": Weights(1.0, 0.0, 0.8),
    "crd+kd": Weights(1.0, 1.0, 0.8),
    # Not in that script. The published weights of dkd and dist are settings of the objectives; a
    # queue or a batch in the bank's place has its weight.
    "crd_queue": Weights(1.0, 0.0, 0.8),
    "info_nce": Weights(1.0, 0.0, 0.8),
    "dkd": Weights(1.0, 0.0, 1.0),
    "dist": Weights(1.0, 0.0, 1.0),
    "wkd_logits": Weights(1.0, 0.0, 1.0),
    "wkd_features": Weights(1.0, 0.0, 0.08),
    "uld": Weights(1.0, 0.0, 1.5),
}
"""By method; Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020 (the public
script `run_cifar_distill.sh`, from resnet32x4 to resnet8x4 on CIFAR-100)."""


def combined(method: Objective | None, weights: Weights, *, temperature: float = 4.0) -> Objective:
    """gamma * cross-entropy + alpha * Hinton's distillation + beta * the method.

    A term of weight zero is left out: it need not fit the teacher.

    Args:
        method: None only where `weights.beta` is zero.
        weights: From `PRESETS`, or your own, each >= 0.
        temperature: Of Hinton's distillation, > 0.

    Raises:
        InputError: If a weight is negative, all are zero, or the method is missing.
    """
    for name, weight in weights._asdict().items():
        checks.require(weight >= 0, f"`{name}` must be >= 0, got {weight}.")
    checks.require(
        method is not None or weights.beta == 0,
        f"`beta` is {weights.beta}, but there is no method for it to weigh; give one, or set "
        "`beta` to zero.",
    )
    terms = [(weights.gamma, cross_entropy()), (weights.alpha, kd(temperature=temperature))]
    if method is not None:
        terms.append((weights.beta, method))
    return weighted_sum(*(term for term in terms if term[0] > 0))
