"""Spreading a leading axis (teachers, or the batch) over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def device_mesh(axis: str = "teachers", num_devices: int | None = None) -> Mesh:
    """A one-axis mesh over the first `num_devices` devices (all by default)."""
    devices = jax.devices()[:num_devices]
    return Mesh(np.asarray(devices), (axis,), axis_types=(AxisType.Auto,))


def by_rows(mesh: Mesh) -> NamedSharding:
    """An equal part of an array's leading axis on each device of a mesh with one axis."""
    return NamedSharding(mesh, PartitionSpec(*mesh.axis_names))


def everywhere(mesh: Mesh) -> NamedSharding:
    """The whole of an array on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())


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
