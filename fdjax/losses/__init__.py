"""What a student minimises: pure functions, student first, one value an example."""

from fdjax.losses.across_labels import Value, student_distance, transport
from fdjax.losses.classification import cross_entropy, kd
from fdjax.losses.contrastive import Sides, crd, info_nce
from fdjax.losses.decoupled import dkd
from fdjax.losses.flow import fsp, kdsvd
from fdjax.losses.maps import abound, attention, factor, hint, nst, vid
from fdjax.losses.prediction_relations import dist
from fdjax.losses.reference import Form, Gate, annealed, gated, reference, reference_target
from fdjax.losses.relations import correlation, pkt, rkd_angle, rkd_distance, similarity
from fdjax.losses.relationship import gkd_classifier, refilled_classifier, refilled_relations
from fdjax.losses.rivals import (
    extra_head,
    feature_matching,
    projected_kl,
    pseudo_labels,
    uld,
)
from fdjax.losses.wasserstein import cka_distances, wkd_features, wkd_logits

__all__ = [
    "Form",
    "Gate",
    "Sides",
    "Value",
    "abound",
    "annealed",
    "attention",
    "cka_distances",
    "correlation",
    "crd",
    "cross_entropy",
    "dist",
    "dkd",
    "extra_head",
    "factor",
    "feature_matching",
    "fsp",
    "gated",
    "gkd_classifier",
    "hint",
    "info_nce",
    "kd",
    "kdsvd",
    "nst",
    "pkt",
    "projected_kl",
    "pseudo_labels",
    "reference",
    "reference_target",
    "refilled_classifier",
    "refilled_relations",
    "rkd_angle",
    "rkd_distance",
    "similarity",
    "student_distance",
    "transport",
    "uld",
    "vid",
    "wkd_features",
    "wkd_logits",
]
