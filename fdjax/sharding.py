"""Spreading a leading axis (teachers, or the batch) over devices, of one process or of several."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def device_mesh(axis: str = "teachers", num_devices: int | None = None) -> Mesh:
    """A one-axis mesh over the first `num_devices` devices (all by default), of all processes."""
    devices = jax.devices()[:num_devices]
    return Mesh(np.asarray(devices), (axis,), axis_types=(AxisType.Auto,))


def by_rows(mesh: Mesh) -> NamedSharding:
    """An equal part of an array's leading axis on each device of a mesh with one axis."""
    return NamedSharding(mesh, PartitionSpec(*mesh.axis_names))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The whole of an array on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())


def short_of_threads(mesh: Mesh) -> bool:
    """Whether programs on the devices of this process may wait for each other's threads for ever.

    On a processor the program of each device holds one of XLA's threads, and batches of matrix
    factorisations (LAPACK) wait there for others of the same threads: with four devices and two
    threads all wait (jax 0.10.2, whatever `jax_cpu_enable_async_dispatch`; unbatched ones do not
    wait). There are as many threads as cores, or as the environment variable NPROC says.
    """
    local = [device for device in mesh.local_devices if device.platform == "cpu"]
    said = os.environ.get("NPROC", "")
    threads = int(said) if said.isdigit() else os.cpu_count() or 1
    return len(local) > 1 and threads < 2 * len(local)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of the host on the devices of a sharding; every process fills those of its own.

    Args:
        tree: Of arrays and random keys, the same in every process.
        sharding: Where they lie. For `by_rows` the last row is repeated until the rows can be
            dealt out evenly.
    """
    parts = 1 if sharding.is_fully_replicated else sharding.mesh.size

    def one(leaf: Any) -> jax.Array:
        if is_random_key(leaf):
            return jax.random.wrap_key_data(
                one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        array = np.asarray(leaf)
        if parts > 1 and -len(array) % parts:
            array = np.concatenate([array, np.repeat(array[-1:], -len(array) % parts, axis=0)])
        return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

    return jax.tree.map(one, tree)


def put_rest(tree: Any, sharding: NamedSharding) -> Any:
    """As `put`, but what lies on several devices already, such as a memory bank, stays there."""

    def one(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and leaf.sharding.num_devices > 1
        return leaf if there else put(leaf, sharding)

    return jax.tree.map(one, tree)


def joined(parts: Any, mesh: Mesh) -> Any:
    """Arrays by rows over a mesh, of which each process has its own rows and no others.

    Args:
        parts: Of arrays of the host, as many rows in every process; in their order they are the
            whole.
        mesh: With one axis, of all devices of all processes.
    """
    place = by_rows(mesh)

    def one(leaf: Any) -> jax.Array:
        shape = (len(leaf) * jax.process_count(), *np.shape(leaf)[1:])
        return jax.make_array_from_process_local_data(place, np.asarray(leaf), shape)

    return jax.tree.map(one, parts)


def on_host(array: Any) -> np.ndarray:
    """An array's numbers; where they are spread over processes, all of them must call it."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def is_random_key(leaf: Any) -> bool:
    """Whether it is a typed random key of jax."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def fetch(tree: Any) -> Any:
    """Arrays that lie `everywhere` as arrays of this process's own."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


def over_leading_axis(function: Callable[[Any], Any], mesh: Mesh) -> Callable[[Any], Any]:
    """Runs `function` on equal parts of its argument's leading axis, one part a device.

    The axis is padded to a multiple of the number of devices by repeating the last row,
    and the result is cut back, so `function` must treat rows independently.

    Args:
        function: Maps a tree of arrays with a common leading axis to a tree of arrays
            with the same leading axis.
        mesh: A mesh with one axis.

    Returns:
        A function of the same signature.
    """
    (axis,) = mesh.axis_names
    spec = PartitionSpec(axis)
    # ott-jax's loops do not annotate how values vary over the mesh: check_vma must be off.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    def run(tree: Any) -> Any:
        size = jax.tree.leaves(tree)[0].shape[0]
        padding = -size % mesh.size
        padded = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padding, axis=0)]), tree
        )
        return jax.tree.map(lambda leaf: leaf[:size], mapped(padded))

    return run
