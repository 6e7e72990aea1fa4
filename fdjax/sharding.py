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


def meet(place: str) -> None:
    """Waits until all processes have come to a place; at once where there is one only."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of the host on the devices of a sharding; every process fills those of its own.

    Args:
        tree: Of arrays, the same in every process.
        sharding: Where they lie. For `by_rows` the last row is repeated until the rows can be
            dealt out evenly.
    """
    parts = 1 if sharding.is_fully_replicated else sharding.mesh.size

    def one(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        if -len(array) % parts:
            array = np.concatenate([array, np.repeat(array[-1:], -len(array) % parts, axis=0)])
        return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

    return jax.tree.map(one, tree)


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
