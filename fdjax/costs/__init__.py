"""Prices of carrying mass from a teacher's labels to the student's labels."""

from fdjax.costs.names import from_names, with_names
from fdjax.costs.predictions import (
    from_predictions,
    leave_one_out_predictor,
    leave_one_out_surprise,
    log_prior,
    predictor,
)
from fdjax.costs.scale import calibrate, normalise
from fdjax.costs.vectors import Metric, between_vectors, class_centres

__all__ = [
    "Metric",
    "between_vectors",
    "calibrate",
    "class_centres",
    "from_names",
    "from_predictions",
    "leave_one_out_predictor",
    "leave_one_out_surprise",
    "log_prior",
    "normalise",
    "predictor",
    "with_names",
]
