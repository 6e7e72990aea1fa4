"""How many teachers to score at a time, from the bytes that scoring one of them takes."""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# Beyond what the caches of a processor hold, larger batches are not faster but slower.
_PROCESSOR_BYTES = 32 * 2**20
# The rest of an accelerator's memory is for the faculty itself and for what XLA adds.
_ACCELERATOR_SHARE = 0.125


def _bytes(variable: Any) -> int:
    shape = getattr(variable.aval, "shape", ())
    return math.prod(shape) * getattr(variable.aval.dtype, "itemsize", 4)


def _variables(atoms: Any) -> list[Any]:
    """Without the constants among them."""
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _inner(value: Any) -> list[Jaxpr]:
    """Programs within a parameter of an equation: bodies of loops, branches, called functions."""
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return (
        [one for part in value for one in _inner(part)] if isinstance(value, tuple | list) else []
    )


def peak_bytes(program: Jaxpr) -> int:
    """Most bytes of intermediate arrays that a program holds at once, if none is fused away.

    Arguments do not count. XLA fuses most elementwise steps, so that it is an upper bound but
    for what its own routines allocate.
    """
    last = {v: i for i, eqn in enumerate(program.eqns) for v in _variables(eqn.invars)}
    last |= dict.fromkeys(_variables(program.outvars), len(program.eqns))
    live = most = 0
    held: dict[Any, int] = {}
    for place, eqn in enumerate(program.eqns):
        held |= {v: _bytes(v) for v in eqn.outvars}
        live += sum(map(_bytes, eqn.outvars))
        inside = [peak_bytes(one) for value in eqn.params.values() for one in _inner(value)]
        most = max(most, live + max(inside, default=0))
        for v in {*_variables(eqn.invars), *eqn.outvars}:
            if last.get(v, place) == place:
                live -= held.pop(v, 0)
    return most


def budget() -> int:
    """Bytes that the teachers scored at a time may take on the first device."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if jax.default_backend() == "cpu" or not limit:
        return _PROCESSOR_BYTES
    return int(_ACCELERATOR_SHARE * limit)


def batch_size(program: Jaxpr, teachers: int) -> int:
    """Teachers at a time: as many as the budget allows, and all batches equal where possible.

    Args:
        program: Scores one teacher.
        teachers: How many there are.
    """
    most = max(1, min(teachers, budget() // max(peak_bytes(program), 1)))
    # What is left over after equal batches would be compiled once more.
    return next((size for size in range(most, most // 2, -1) if teachers % size == 0), most)
