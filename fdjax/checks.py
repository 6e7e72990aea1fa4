"""Checks of what a user hands in, each failing with one sentence that says how to mend it."""

import contextlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np


class InputError(ValueError):
    """Something handed in by the user is wrong; the message names it and the mend."""


def is_concrete(*arrays: Any) -> bool:
    """True if every array holds values now, False under `jit`, `vmap` or `grad`."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def positive(name: str, value: Any) -> None:
    """Refuses a setting that is not above zero; traced values pass."""
    if is_concrete(value) and not bool(np.all(np.asarray(value) > 0)):
        raise InputError(f"`{name}` must be positive, got {value}.")


def in_range(name: str, value: int | float, low: int | float, high: int | float) -> None:
    """Refuses a setting outside [low, high]."""
    if not low <= value <= high:
        raise InputError(f"`{name}` must lie in [{low}, {high}], got {value}.")


def choice(name: str, value: Any, options: Iterable[Any]) -> None:
    """Refuses a setting that is not one of `options`."""
    known = list(options)
    if value not in known:
        listed = ", ".join(map(str, known))
        raise InputError(f"`{name}` must be one of {listed}; got {value!r}.")


def text(name: str, value: str, *, longest: int = 1000) -> None:
    """Refuses a text that is overlong, or could steer a terminal or break a line of a report."""
    require(len(value) <= longest, f"`{name}` must have at most {longest} characters.")
    for char in value:
        # Control characters, halves of a character, and ends of lines and paragraphs.
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"):
            raise InputError(f"`{name}` holds the control character {char!a}; leave it out.")


def shape(name: str, array: Any, expected: Sequence[int | None]) -> None:
    """Refuses an array whose shape differs from `expected`; None stands for any size."""
    got = np.shape(array)
    fits = len(got) == len(expected) and all(
        want is None or want == have for want, have in zip(expected, got, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise InputError(f"`{name}` must have shape ({wanted}), got {tuple(got)}.")


def finite(name: str, array: Any) -> None:
    """Refuses NaN and infinity; traced values pass."""
    if is_concrete(array) and not bool(np.isfinite(np.asarray(array, np.float64)).all()):
        raise InputError(f"`{name}` must be finite, but it holds NaN or infinity.")


def labels(name: str, values: Any, num_classes: int, *, unlabelled: bool = False) -> None:
    """Refuses labels outside [0, num_classes), or below -1 where `unlabelled` is allowed."""
    if not is_concrete(values):
        return
    low = -1 if unlabelled else 0
    array = np.asarray(values)
    wrong = (array < low) | (array >= num_classes)
    if wrong.any():
        where = int(np.argmax(wrong))
        raise InputError(
            f"`{name}` must lie in [{low}, {num_classes - 1}], got {int(array[where])} at position "
            f"{where}; restrict the task or give `num_classes` as the number of its classes."
        )


def every_class_present(name: str, values: Any, num_classes: int) -> None:
    """Refuses labels in which a class has no example; traced values pass."""
    if not is_concrete(values):
        return
    array = np.asarray(values)
    counts = np.bincount(array[array >= 0], minlength=num_classes)
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        raise InputError(
            f"`{name}` has no example of class {int(empty[0])} ({empty.size} of {num_classes} "
            "classes are empty); label at least one example of each class or restrict the task."
        )


@contextlib.contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turns failures of the disk into one sentence that names `place`.

    Raises:
        InputError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write to {os.fspath(place)} ({error.strerror or error}); choose a folder you "
            "may write to, with space left."
        ) from error
