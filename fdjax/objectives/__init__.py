"""What a student is trained for: losses with the arrays they learn or remember."""

import inspect
from collections.abc import Callable
from typing import Any

from fdjax import checks
from fdjax.objectives.across_labels import transport
from fdjax.objectives.base import Objective, weighted_sum
from fdjax.objectives.classification import cross_entropy, kd

__all__ = [
    "OBJECTIVES",
    "Objective",
    "create",
    "cross_entropy",
    "kd",
    "transport",
    "weighted_sum",
]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "cross_entropy": cross_entropy,
    "kd": kd,
    "transport": transport,
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
