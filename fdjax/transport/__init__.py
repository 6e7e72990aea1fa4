"""Entropic optimal transport for a whole batch or faculty as one direct-sum problem.

Its own Sinkhorn loop, problem and geometry classes are ott-jax's; only this room imports it.
"""

from fdjax.transport.domains import DOMAINS, Domain
from fdjax.transport.sharp import sharp_cost
from fdjax.transport.solver import Solution, plan, solve
from fdjax.transport.unbalanced import solve_unbalanced, unbalanced_cost
from fdjax.transport.value import Entropy, transport_cost, transport_cost_to_labels

__all__ = [
    "DOMAINS",
    "Domain",
    "Entropy",
    "Solution",
    "plan",
    "sharp_cost",
    "solve",
    "solve_unbalanced",
    "transport_cost",
    "transport_cost_to_labels",
    "unbalanced_cost",
]
