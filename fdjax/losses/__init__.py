"""What a student minimises: pure functions, student first, one value an example."""

from fdjax.losses.across_labels import transport
from fdjax.losses.classification import cross_entropy, kd

__all__ = ["cross_entropy", "kd", "transport"]
