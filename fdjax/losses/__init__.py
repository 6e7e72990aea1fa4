"""What a student minimises: pure functions, student first, one value an example."""

from fdjax.losses.across_labels import transport
from fdjax.losses.classification import cross_entropy, kd
from fdjax.losses.reference import Form, Gate, gated, reference, reference_target
from fdjax.losses.relationship import gkd_classifier, refilled_classifier, refilled_relations
from fdjax.losses.rivals import (
    extra_head,
    feature_matching,
    projected_kl,
    pseudo_labels,
    uld,
)

__all__ = [
    "Form",
    "Gate",
    "cross_entropy",
    "extra_head",
    "feature_matching",
    "gated",
    "gkd_classifier",
    "kd",
    "projected_kl",
    "pseudo_labels",
    "reference",
    "reference_target",
    "refilled_classifier",
    "refilled_relations",
    "transport",
    "uld",
]
