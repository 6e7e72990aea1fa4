"""Timing that waits for the device, and a record that says where numbers come from."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdjax import checks, reports

_PACKAGES = ("fdjax", "jax", "jaxlib", "ott-jax", "numpy", "POT")


class Timing(NamedTuple):
    """How long a function takes.

    Attributes:
        compile_seconds: Tracing and compiling; 0 for a function that is not jitted.
        seconds: Median of the timed calls.
        all: The timed calls, in order, in seconds.
        result: What the last call returned, on the device.
    """

    compile_seconds: float
    seconds: float
    all: tuple[float, ...]
    result: Any


def measure(
    function: Callable[..., Any], *args: Any, repeats: int = 7, budget: float = 60.0
) -> Timing:
    """Times `function(*args)`, waiting each time until its arrays are ready.

    A first call, which may fill caches, is not counted; compiling is timed apart.

    Args:
        function: Anything that can be called, jitted or not.
        *args: What it is called with.
        repeats: Number of timed calls.
        budget: Seconds after which no further call starts, once two are timed.

    Returns:
        The timing, with the last result.

    Raises:
        InputError: If `repeats` or `budget` is not positive.
    """
    checks.positive("repeats", repeats)
    checks.positive("budget", budget)
    compile_seconds = 0.0
    if hasattr(function, "lower"):
        start = time.perf_counter()
        function = function.lower(*args).compile()
        compile_seconds = time.perf_counter() - start

    def call() -> tuple[float, Any]:
        start = time.perf_counter()
        result = jax.block_until_ready(function(*args))
        return time.perf_counter() - start, result

    call()
    seconds: list[float] = []
    while len(seconds) < repeats and (len(seconds) < 2 or sum(seconds) < budget):
        duration, result = call()
        seconds.append(duration)
    return Timing(compile_seconds, statistics.median(seconds), tuple(seconds), result)


def matmul_rate(size: int = 1024, repeats: int = 7) -> float:
    """Speed of this machine's float32 matrix product, in GFLOP/s: the yardstick of the rest."""
    matrix = jax.random.uniform(jax.random.key(0), (size, size))
    product = jax.jit(lambda x, y: jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST))
    return 2e-9 * size**3 / measure(product, matrix, matrix, repeats=repeats).seconds


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
        "cpu_count": os.cpu_count(),
    }


def with_ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds to each row `ratio`: its `seconds` divided by those of the first row."""
    checks.require(len(rows) > 0, "`rows` is empty: a record needs at least one measurement.")
    return [{**row, "ratio": row["seconds"] / rows[0]["seconds"]} for row in rows]


def record(
    path: str | os.PathLike[str] | None,
    rows: Sequence[Mapping[str, Any]],
    command: str,
    **facts: Any,
) -> dict[str, Any]:
    """Prints rows as a Markdown table and writes them with their surroundings as JSON.

    Args:
        path: File to write, all or nothing; None only prints.
        rows: Measurements, each with its `seconds`; the first is what the others are
            compared with.
        command: What gives these numbers again.
        **facts: Further entries of the record, such as the settings.

    Returns:
        The record.
    """
    ratios = with_ratios(rows)
    entry = {"command": command, **surroundings(), **facts, "rows": ratios}
    print(reports.table(ratios), end="")
    if path is not None:
        reports.write_json(path, entry)
    return entry
