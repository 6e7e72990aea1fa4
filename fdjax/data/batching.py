"""Batches without end, in an order that is known beforehand from the seed alone."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fdjax import checks
from fdjax.data.tasks import Split, check_seed, philox
from fdjax.types import UNLABELLED, Batch


class _Stream(NamedTuple):
    """Rows that are visited over and over, each once an epoch."""

    rows: Int[np.ndarray, " rows"]
    per_batch: int
    permutation: Callable[[int], np.ndarray]

    def at(self, step: int) -> Int[np.ndarray, " batch"]:
        start = step * self.per_batch
        return self.rows[_order(self.permutation, len(self.rows), start, self.per_batch)]


def order(num_examples: int, count: int, *, seed: int, start: int = 0) -> Int[np.ndarray, " count"]:
    """Rows at the places `start` to `start + count` of an endless random order.

    The order is one permutation of all rows after another, so every row is met exactly
    once an epoch. It depends on `num_examples` and `seed` alone: Philox's raw bits, which
    NumPy promises never to change, are the sort keys of each permutation.

    Args:
        num_examples: Number of rows, at least 1.
        count: How many places to read, >= 0.
        seed: Which order; >= 0.
        start: First place, >= 0.

    Returns:
        Row at each place, in [0, num_examples).
    """
    checks.positive("num_examples", num_examples)
    checks.require(count >= 0, f"`count` must not be negative, got {count}.")
    checks.require(start >= 0, f"`start` must not be negative, got {start}.")
    check_seed(seed)
    permutation = functools.partial(_permutation, num_examples, seed, "all")
    return _order(permutation, num_examples, start, count)


def batches(
    part: Split,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    labelled: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless batches; batch number i is a pure function of `seed`, i and the data.

    To go on where a run ended, give the number of the first batch not yet used as
    `start`: nothing else need be remembered. Batches run across the end of an epoch, so
    no row is dropped, and may be larger than the data.

    Args:
        part: Where the rows come from.
        batch_size: Rows of a batch, at least 1.
        seed: Which order; >= 0.
        start: Number of the first batch, >= 0.
        labelled: How many rows of each batch, from the first on, are labelled; the others
            are unlabelled, and each kind has its own epochs. By default the two kinds
            are not told apart.
        share: Which of how many equal parts of each batch to cut, such as that of a process, which
            then reads no image of the others'.

    Returns:
        An iterator over batches of NumPy arrays; `indices` are rows of `part`.

    Raises:
        InputError: Before the first batch, if a number is out of range or rows of a wanted
            kind are missing.
    """
    checks.positive("batch_size", batch_size)
    checks.require(start >= 0, f"`start` must not be negative, got {start}.")
    check_seed(seed)
    number, parts = share
    checks.in_range("share", number, 0, parts - 1)
    checks.require(
        batch_size % parts == 0,
        f"a batch of {batch_size} cannot be cut into {parts} equal parts; choose a multiple.",
    )
    everything = np.arange(len(part))
    if labelled is None:
        wanted = {"all": (everything, batch_size)}
    else:
        checks.require(
            0 <= labelled <= batch_size,
            f"`labelled` must lie in [0, {batch_size}], the size of a batch, got {labelled}.",
        )
        known = part.labels != UNLABELLED
        wanted = {
            "labelled": (everything[known], labelled),
            "unlabelled": (everything[~known], batch_size - labelled),
        }
    streams = []
    for kind, (rows, per_batch) in wanted.items():
        if per_batch == 0:
            continue
        checks.require(
            len(rows) > 0,
            f"a batch needs {per_batch} images of `part` ({kind}), but it has none; change "
            "`labelled` or the data.",
        )
        # A step needs the permutation of its epoch, or of two when it crosses the border.
        permutation = functools.lru_cache(maxsize=2)(
            functools.partial(_permutation, len(rows), seed, kind)
        )
        streams.append(_Stream(rows, per_batch, permutation))
    size = batch_size // parts
    return _generate(part, streams, start, slice(number * size, (number + 1) * size))


def resident_batches(
    images: Float[Array, "examples height width channels"],
    labels: Int[Array, " examples"],
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    sharding: jax.sharding.Sharding | None = None,
) -> Iterator[Batch]:
    """The batches of `batches`, cut out of images that lie on the device already.

    Nothing but the numbers of the rows goes from the host to the device at each step.

    Args:
        images: Preprocessed images, on the device or on each of several.
        labels: Of each image, beside them.
        batch_size: Rows of a batch, at least 1.
        seed: Which order; >= 0.
        start: Number of the first batch, >= 0.
        sharding: How a batch is spread over devices; None for where the images are.

    Raises:
        InputError: Before the first batch, if a number is out of range, there is no image, or
            the devices do not divide the batch.
    """
    checks.positive("batch_size", batch_size)
    checks.positive("the number of images", len(images))
    checks.require(start >= 0, f"`start` must not be negative, got {start}.")
    check_seed(seed)
    devices = 1 if sharding is None else sharding.num_devices
    checks.require(
        batch_size % devices == 0,
        f"a batch of {batch_size} cannot be spread evenly over {devices} devices; choose a "
        "multiple of their number.",
    )
    permutation = functools.lru_cache(maxsize=2)(
        functools.partial(_permutation, len(images), seed, "all")
    )
    stream = _Stream(np.arange(len(images)), batch_size, permutation)
    steps = itertools.count(start)
    return (_cut(images, labels, stream.at(step).astype(np.int32), sharding) for step in steps)


@functools.partial(jax.jit, static_argnums=3)
def _cut(
    images: Array, labels: Array, rows: Array, sharding: jax.sharding.Sharding | None
) -> Batch:
    batch = Batch(jnp.take(images, rows, axis=0), jnp.take(labels, rows), rows)
    return batch if sharding is None else jax.lax.with_sharding_constraint(batch, sharding)


def _generate(part: Split, streams: list[_Stream], start: int, cut: slice) -> Iterator[Batch]:
    step = start
    while True:
        indices = np.concatenate([stream.at(step) for stream in streams])[cut]
        # NumPy arrays, which `jit` takes in as they are.
        images: Any = part.images.take(indices, axis=0)
        labels: Any = part.labels[indices]
        rows: Any = indices.astype(np.int32)
        yield Batch(images, labels, rows)
        step += 1


def _order(
    permutation: Callable[[int], np.ndarray], num_examples: int, start: int, count: int
) -> Int[np.ndarray, " count"]:
    pieces = [np.empty(0, np.int64)]
    place, end = start, start + count
    while place < end:
        epoch, offset = divmod(place, num_examples)
        piece = permutation(epoch)[offset : offset + end - place]
        pieces.append(piece)
        place += len(piece)
    return np.concatenate(pieces)


def _permutation(num_examples: int, seed: int, kind: str, epoch: int) -> np.ndarray:
    bits = philox(seed, f"order of {kind}", epoch).random_raw(num_examples)
    return np.argsort(bits, kind="stable")
