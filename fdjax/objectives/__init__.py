"""What a student is trained for: losses with the arrays they learn or remember."""

import inspect
from collections.abc import Callable
from typing import Any

from fdjax import checks
from fdjax.objectives.across_labels import transport
from fdjax.objectives.base import Objective, weighted_sum
from fdjax.objectives.classification import cross_entropy, kd
from fdjax.objectives.contrastive import crd, crd_queue, info_nce
from fdjax.objectives.ensembles import Part, ensemble, part_of, side_by_side
from fdjax.objectives.features import (
    attention,
    correlation,
    hint,
    kdsvd,
    nst,
    pkt,
    rkd,
    similarity,
    vid,
)
from fdjax.objectives.predictions import dist, dkd
from fdjax.objectives.presets import PRESETS, Weights, combined
from fdjax.objectives.reference import reference, trusted_reference
from fdjax.objectives.rivals import (
    extra_head,
    feature_matching,
    projected_kl,
    pseudo_labels,
    uld,
)
from fdjax.objectives.rivals_relationship import (
    gkd_classifier,
    refilled_classifier,
    refilled_relations,
)
from fdjax.objectives.staged import (
    FIRST_STAGES,
    NOTHING,
    abound,
    bystander,
    except_head,
    factor,
    factor_paraphraser,
    fsp,
)
from fdjax.objectives.wasserstein import wkd_features, wkd_logits

__all__ = [
    "FIRST_STAGES",
    "NOTHING",
    "OBJECTIVES",
    "PRESETS",
    "Objective",
    "Part",
    "Weights",
    "abound",
    "attention",
    "bystander",
    "combined",
    "correlation",
    "crd",
    "crd_queue",
    "create",
    "cross_entropy",
    "dist",
    "dkd",
    "ensemble",
    "except_head",
    "extra_head",
    "factor",
    "factor_paraphraser",
    "feature_matching",
    "fsp",
    "gkd_classifier",
    "hint",
    "info_nce",
    "kd",
    "kdsvd",
    "nst",
    "part_of",
    "pkt",
    "projected_kl",
    "pseudo_labels",
    "reference",
    "refilled_classifier",
    "refilled_relations",
    "rkd",
    "side_by_side",
    "similarity",
    "transport",
    "trusted_reference",
    "uld",
    "vid",
    "weighted_sum",
    "wkd_features",
    "wkd_logits",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": cross_entropy,
    "kd": kd,
    "transport": transport,
    "reference": reference,
    "projected_kl": projected_kl,
    "uld": uld,
    "extra_head": extra_head,
    "feature_matching": feature_matching,
    "refilled_relations": refilled_relations,
    "refilled_classifier": refilled_classifier,
    "gkd_classifier": gkd_classifier,
    "pseudo_labels": pseudo_labels,
    "dkd": dkd,
    "dist": dist,
    "wkd_logits": wkd_logits,
    "wkd_features": wkd_features,
    "hint": hint,
    "attention": attention,
    "similarity": similarity,
    "correlation": correlation,
    "vid": vid,
    "rkd": rkd,
    "pkt": pkt,
    "abound": abound,
    "factor_paraphraser": factor_paraphraser,
    "factor": factor,
    "fsp": fsp,
    "nst": nst,
    "kdsvd": kdsvd,
    "crd": crd,
    "crd_queue": crd_queue,
    "info_nce": info_nce,
}


def create(name: str, **settings: Any) -> Objective:
    """Objective of the table by name, with those of the settings that it takes.

    Args:
        name: One of `OBJECTIVES`.
        **settings: Settings of objectives; those of others are passed over, so that one set of
            flags serves them all.

    Raises:
        InputError: If the name is unknown, no objective takes a setting, or one is missing.
    """
    checks.choice("objective", name, OBJECTIVES)
    known = {key for other in OBJECTIVES.values() for key in inspect.signature(other).parameters}
    for key in settings:
        checks.choice("setting of an objective", key, sorted(known))
    taken = inspect.signature(OBJECTIVES[name]).parameters
    for key, parameter in taken.items():
        checks.require(
            key in settings or parameter.default is not parameter.empty,
            f"the objective `{name}` needs `{key}`.",
        )
    return OBJECTIVES[name](**{key: value for key, value in settings.items() if key in taken})
