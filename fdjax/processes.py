"""Several processes as one program: they come together, agree, and end together."""

import contextlib
import os
import re
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its store of keys and values has no public name
from jax.experimental import multihost_utils

from fdjax import checks

_OVER = "fdjax/over"  # key of how it ended
_YEAR = 31_536_000_000  # milliseconds
_GRACE = 5.0  # seconds in which all come to know that one has failed
_watchers: list[threading.Thread] = []
"""The thread in which this process waits for the end, if it has joined others."""


def check(coordinator: str | None, processes: int, process: int) -> None:
    """Refuses processes that cannot come together, before anything is waited for.

    Args:
        coordinator: As for `join`; None for one process alone.
        processes: As for `join`.
        process: As for `join`.

    Raises:
        InputError: Naming the flag.
    """
    checks.in_range("--process", process, 0, processes - 1)
    if coordinator is None:
        checks.require(
            processes == 1,
            f"--processes={processes} need --coordinator=HOST:PORT, the address of process 0.",
        )
        return
    checks.require(
        re.fullmatch(r"[^\s:]+:\d{1,5}", coordinator) is not None,
        f"--coordinator must be HOST:PORT of process 0, such as host0:1234, got {coordinator!r}.",
    )


def join(coordinator: str, processes: int, process: int, *, patience: float = 300.0) -> None:
    """Makes this process one of several, whose devices are then those of one program.

    Called in every process before jax is first used. From then on the processes end together:
    where one of them comes to `fail`, all others end at once, with its words and its status.

    Args:
        coordinator: HOST:PORT of process 0, that all can reach.
        processes: How many there are.
        process: Which one this is; 0 is the one that writes.
        patience: Seconds to wait for the others; the process ends if they do not come.

    Raises:
        InputError: If `process` is none of them, or this process has used jax already.
    """
    check(coordinator, processes, process)

    def alone() -> None:
        print(
            f"error: process {process} of {processes} waited {patience:g} seconds in vain for the "
            f"others at {coordinator}; start all of them, with the same --coordinator and "
            "--processes.",
            file=sys.stderr,
        )
        _end(2)

    # jax would give up, too, but with a stack of C++ for its last words.
    late = threading.Timer(patience, alone)
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes=processes,
            process_id=process,
            initialization_timeout=int(patience) + 60,
        )
    except (RuntimeError, ValueError) as error:
        raise checks.InputError(
            f"process {process} of {processes} could not join the others at {coordinator} "
            f"({error}); join before jax is first used, and once."
        ) from error
    finally:
        late.cancel()
    _watchers.append(threading.Thread(target=_watch, daemon=True))
    _watchers[0].start()


def is_first() -> bool:
    """Whether this process is the one that writes; true where there is no other."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Whether this process has joined others."""
    return bool(_watchers)


def meet(place: str) -> None:
    """Waits until all processes have come to a place; at once where there is one only."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def from_first(tree: Any) -> Any:
    """The first process's NumPy arrays in all processes; all of them must call it.

    Args:
        tree: Of arrays; those of the other processes only tell shapes and types.
    """
    if jax.process_count() == 1:
        return tree
    # As bytes: jax would make 32 bits of 64.
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    sent = [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]
    got = multihost_utils.broadcast_one_to_all(sent)
    whole = [
        np.frombuffer(np.asarray(one).tobytes(), leaf.dtype).reshape(leaf.shape)
        for one, leaf in zip(got, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, whole)


def text_of_first(text: str) -> str:
    """The first process's text in all processes; all of them must call it."""
    raw = np.frombuffer(text.encode() + b"\n", np.uint8)  # no array of no bytes
    size = int(from_first(np.int64(len(raw))))
    return str(from_first(np.resize(raw, size)).tobytes().decode()[:-1])


def agree(what: str, text: str) -> None:
    """Makes sure that all processes have the same text; all of them must call it.

    Raises:
        InputError: In a process that has another one than the first.
    """
    first = text_of_first(text)
    checks.require(
        text == first,
        f"process {jax.process_index()} has other {what} than process 0: {text} and not {first}; "
        "give all processes the same.",
    )
    meet(what)  # or process 0 would go on until it hears of it


def part() -> None:
    """Waits until all processes have done their work; from then on each ends by itself."""
    if not are_several():
        return
    meet("end")
    if is_first():
        client: Any = distributed.global_state.client
        client.key_value_set(_OVER, "0 0 ")
    # A thread that waits in C++ while Python ends would abort the process.
    _watchers.pop().join()


def fail(words: str, status: int) -> None:
    """Ends all processes with a status, the others with these words; returns if there are none."""
    if not are_several():
        return
    client: Any = distributed.global_state.client
    with contextlib.suppress(Exception):  # another has failed first
        client.key_value_set(_OVER, f"{status} {jax.process_index()} {words}")
    time.sleep(2 * _GRACE)  # `_watch` ends this process, too
    _end(status)


def _watch() -> None:
    """Ends this process when one of them fails; a thread, as the main one may wait in C++."""
    client: Any = distributed.global_state.client
    try:
        status, process, words = client.blocking_key_value_get(_OVER, _YEAR).split(" ", 2)
    except Exception:  # the others are gone, of which jax tells itself
        return
    if status == "0":
        return
    if int(process) != jax.process_index():
        print(f"error: process {process} failed: {words}", file=sys.stderr)
    with contextlib.suppress(Exception):
        # Process 0 holds the words: nobody leaves before all have read them, and it leaves last,
        # as jax aborts those who miss it.
        client.wait_at_barrier(_OVER, int(1000 * _GRACE))
        time.sleep(_GRACE / 5 if is_first() else 0.0)
    _end(int(status))


def _end(status: int) -> None:
    """Ends the process without the farewell of jax, which would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
