"""Over which devices the images of a batch are spread, of one process or of several."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments import _run
from fdjax import checks, sharding, training
from fdjax.types import Batch


@dataclasses.dataclass(frozen=True)
class DevicesConfig(_run.HostsConfig):
    """Flags of every experiment that can train over several devices."""

    devices: int = _run.flag(
        1, "Devices over which each batch is spread; 0 for all, of all processes.", low=0
    )


def mesh(config: DevicesConfig, batch_size: int) -> jax.sharding.Mesh | None:
    """The devices to spread batches over; None for one.

    Raises:
        InputError: If there are not so many, a process would have none of them, or they do not
            divide a batch.
    """
    everyone = jax.device_count()
    count = config.devices or everyone
    checks.require(
        count <= everyone,
        f"--devices={count}, but there are {everyone} here; lower it, or 0 for all.",
    )
    checks.require(
        config.processes == 1 or count == everyone,
        f"--devices={count} of {everyone} would leave out some of {config.processes} processes; "
        "give --devices=0 for all.",
    )
    checks.require(
        batch_size % count == 0,
        f"--batch_size={batch_size} cannot be spread evenly over {count} devices; choose a "
        "multiple of their number.",
    )
    return None if count == 1 else sharding.device_mesh("batch", count)


def spread(
    mesh: jax.sharding.Mesh | None,
    state: training.TrainState,
    teacher: Any,
    batches: Callable[..., Iterator[Batch]],
) -> tuple[training.TrainState, Any, Callable[[int], Iterator[Batch]]]:
    """What `training.fit` takes, over devices: state and teacher whole on each, batches in parts.

    Args:
        mesh: The devices, of this process or of several; None for one.
        state: The same in every process.
        teacher: The same in every process.
        batches: `start, share -> iterator`, see `data.batches`: each process cuts its own part.
    """
    if mesh is None:
        return state, teacher, batches
    share = jax.process_index(), jax.process_count()

    def parts(start: int) -> Iterator[Batch]:
        return (sharding.joined(part, mesh) for part in batches(start, share=share))

    state, teacher = sharding.put_rest((state, teacher), sharding.everywhere(mesh))
    return state, teacher, parts
