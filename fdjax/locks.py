"""One process at a time, by locks that the system frees when their holder dies."""

import contextlib
import os
import sys
from collections.abc import Iterator


def acquire(path: str | os.PathLike[str], *, wait: bool) -> int | None:
    """Takes a lock.

    Args:
        path: A file of its own, in a folder that exists; it stays behind empty, and says nothing
            by being there.
        wait: Whether to wait for whoever holds the lock now.

    Returns:
        A file descriptor, whose closing frees the lock; None if another holds it. On Windows,
        where there is no such lock, everybody gets it.

    Raises:
        OSError: If the folder cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if sys.platform == "win32":
        return descriptor
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def held(path: str | os.PathLike[str]) -> Iterator[None]:
    """Waits for a lock and holds it during the block, among threads too.

    Raises:
        OSError: If the folder cannot be written.
    """
    descriptor = acquire(path, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
