"""Timing that waits for the device, and the surroundings in which numbers were measured."""

import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdjax import checks

_PACKAGES = ("fdjax", "jax", "jaxlib", "ott-jax", "numpy", "scipy", "POT", "torch")


class Timing(NamedTuple):
    """How long a function takes.

    Attributes:
        compile_seconds: Tracing and compiling; 0 for a function that is not jitted.
        seconds: Median of the timed calls.
        all: The timed calls, in order, in seconds.
        result: What the last call returned, on the device.
        bytes: Storage beside arguments and results: XLA's own count for a jitted function,
            otherwise the peak of what Python and NumPy allocated; None where unknown.
    """

    compile_seconds: float
    seconds: float
    all: tuple[float, ...]
    result: Any
    bytes: int | None = None


def measure(
    function: Callable[..., Any],
    *args: Any,
    repeats: int = 7,
    budget: float = 60.0,
    least: float = 0.0,
) -> Timing:
    """Times `function(*args)`, waiting each time until its arrays are ready.

    A first call, which may fill caches, is not counted; compiling is timed apart.

    Args:
        function: Anything that can be called, jitted or not.
        *args: What it is called with.
        repeats: Number of timed calls.
        budget: Seconds after which no further call starts, once two are timed.
        least: Seconds up to which quick calls are repeated beyond `repeats`, as single ones
            are timed badly.

    Returns:
        The timing, with the last result.

    Raises:
        InputError: If `repeats` or `budget` is not positive.
    """
    call = (function, *args)
    return measure_together([call], repeats=repeats, budget=budget, least=least)[0]


def measure_together(
    calls: Sequence[tuple[Any, ...]], *, repeats: int = 7, budget: float = 60.0, least: float = 0.0
) -> list[Timing]:
    """Times several calls in turns, so that their ratios are fair.

    What disturbs the machine then disturbs all of them. The settings are those of `measure`.

    Args:
        calls: Each a function and its arguments.
        repeats: Number of timed turns.
        budget: Seconds for all turns.
        least: Seconds to spend at least.

    Returns:
        One timing a call.

    Raises:
        InputError: As `measure`.
    """
    checks.positive("repeats", repeats)
    checks.positive("budget", budget)
    prepared = [_prepare(*call) for call in calls]
    seconds: list[list[float]] = [[] for _ in prepared]
    results: list[Any] = [None] * len(prepared)
    while True:
        done, spent = len(seconds[0]), sum(map(sum, seconds))
        if (done >= repeats and spent >= least) or (done >= 2 and spent >= budget):
            break
        for place, ((function, _, _), (_, *args)) in enumerate(zip(prepared, calls, strict=True)):
            start = time.perf_counter()
            results[place] = jax.block_until_ready(function(*args))
            seconds[place].append(time.perf_counter() - start)
    return [
        Timing(compile_seconds, statistics.median(durations), tuple(durations), result, held)
        for (_, compile_seconds, held), durations, result in zip(
            prepared, seconds, results, strict=True
        )
    ]


def _prepare(
    function: Callable[..., Any], *args: Any
) -> tuple[Callable[..., Any], float, int | None]:
    """The function ready to be timed, the seconds its compiling took, and its storage."""
    if not hasattr(function, "lower"):
        tracemalloc.start()
        try:
            jax.block_until_ready(function(*args))
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return function, 0.0, held
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    duration = time.perf_counter() - start
    jax.block_until_ready(compiled(*args))
    analysis = compiled.memory_analysis()  # None on backends that do not say
    return compiled, duration, getattr(analysis, "temp_size_in_bytes", None)


class Yardstick(NamedTuple):
    """A matrix product, in float32 unless said, that others are measured by.

    Attributes:
        call: Function and arguments, for `measure_together`.
        gflop: Multiplications and additions of one call, in thousand millions.
    """

    call: tuple[Any, ...]
    gflop: float


def square_product(size: int = 1024) -> Yardstick:
    """One product of two square matrices: the machine's own rate."""
    matrix = jax.random.uniform(jax.random.key(0), (size, size))
    return Yardstick((jax.jit(_product), matrix, matrix), 2e-9 * size**3)


def pair_product(
    teachers: int, examples: int, source: int, target: int, *, double: bool = False
) -> Yardstick:
    """The two products of a Sinkhorn iteration and nothing else, as often as is timed well.

    [teachers, target, source] times [teachers, source, examples] and back: with an example a
    column they are faster than with one a row.

    Args:
        teachers: Matrices.
        examples: Columns of each.
        source: Rows of the columns.
        target: Rows of what they are multiplied to.
        double: Whether in float64.
    """
    keys = jax.random.split(jax.random.key(0), 2)
    columns = jax.random.uniform(keys[0], (teachers, source, examples))
    matrix = jax.random.uniform(keys[1], (teachers, source, target)) + 0.5
    # Columns that sum to one keep the numbers in range, however often they are multiplied.
    back = matrix / matrix.sum(axis=-2, keepdims=True)
    there = jnp.swapaxes(matrix / matrix.sum(axis=-1, keepdims=True), -1, -2)
    if teachers == 1:  # XLA runs a plain product faster than a batch of one
        columns, there, back = columns[0], there[0], back[0]
    return _repeated(
        4e-9 * teachers * examples * source * target,
        lambda x, there, back: _product(back, _product(there, x)),
        columns,
        there,
        back,
        double=double,
    )


def vector_product(problems: int, source: int, target: int) -> Yardstick:
    """The same for problems that have a kernel each: matrix-vector products from the cache.

    What a Sinkhorn in the log domain is bound by, as potentials differ between problems.
    """
    held = max(1, min(problems, 2**19 // (source * target)))
    matrices = jax.random.uniform(jax.random.key(0), (held, source, target)) + 0.5
    matrices = matrices / matrices.sum(axis=-2, keepdims=True)

    def there_and_back(x: jax.Array, matrices: jax.Array) -> jax.Array:
        there = jnp.einsum("nst,ns->nt", matrices, x, precision=_HIGHEST)
        there = there / there.sum(axis=-1, keepdims=True)
        return jnp.einsum("nst,nt->ns", matrices, there, precision=_HIGHEST)

    vectors = jnp.ones((held, source)) / source
    return _repeated(4e-9 * held * source * target, there_and_back, vectors, matrices)


def _repeated(
    gflop: float, function: Any, x: jax.Array, *others: jax.Array, double: bool = False
) -> Yardstick:
    """A function of its own result, as often as one call needs to be timed well."""
    count = max(1, min(1000, math.ceil(2 / gflop)))

    @jax.jit
    def often(*arrays: jax.Array) -> jax.Array:
        with jax.enable_x64(double):
            start, *others = (array.astype(float if double else array.dtype) for array in arrays)
            last = jax.lax.fori_loop(0, count, lambda _, x: function(x, *others), start)
            return last.astype(x.dtype)

    return Yardstick((often, x, *others), count * gflop)


_HIGHEST = jax.lax.Precision.HIGHEST


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision=_HIGHEST)


def _processor() -> str:
    """Name of the processor as the system gives it."""
    listed = pathlib.Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def surroundings() -> dict[str, Any]:
    """Date, versions and device: what a reader needs to judge a time."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional peer
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def with_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds to each row `ratio`: its `seconds` divided by those of the first row."""
    checks.require(len(rows) > 0, "`rows` is empty: ratios need at least one measurement.")
    return [{**row, "ratio": row["seconds"] / rows[0]["seconds"]} for row in rows]
