"""Sketches of teachers by a set of probe images, each made once and kept beside the card."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from fdjax import checks, data
from fdjax.faculty import files, observations, repository
from fdjax.faculty.cards import Card
from fdjax.faculty.observations import Images
from fdjax.faculty.repository import Root
from fdjax.selection import Sketch, sketch

SKETCH = "sketch.npz"

# Raised when the same teacher and probe images would give another sketch than before.
_FORMAT = 1


def sketch_all(
    root: Root,
    images: Images,
    encoded: Float[np.ndarray, "probes dimensions"],
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 512,
    progress: bool = False,
) -> tuple[Sketch, ...]:
    """The sketch of every teacher, for `selection.index`.

    A teacher is asked about the probe images once, however many tasks come after: its sketch is
    kept as `teachers/NAME/sketch.npz` and is used as long as the digests inside are those of
    teacher, probe images and embedding. One that is damaged is made again, with a warning; so is,
    silently, one of another teacher of the name or of other probes. A faculty that cannot be
    written is only read (with a warning).

    Args:
        root: A faculty with at least one teacher.
        images: The probe images, as loaded; the same for all teachers and tasks.
        encoded: The probe images in the shared embedding.
        names: Which teachers, in which order; by default all, in the order of `cards`.
        batch_size: Images that run through a network at once, >= 1.
        progress: Whether to show a bar; only on a terminal.

    Returns:
        One sketch a teacher, see `selection.sketch`.

    Raises:
        InputError: As `observe_all`, or if images and `encoded` do not fit.
    """
    cards = repository.cards(root)
    chosen = cards if names is None else tuple(repository.read_card(root, name) for name in names)
    checks.require(
        len(chosen) > 0,
        f"no teacher to sketch in the faculty at {os.path.abspath(root)}; register one.",
    )
    images, encoded = np.asarray(images), np.asarray(encoded)
    checks.shape("encoded", encoded, (len(images), None))
    checks.finite("encoded", encoded)
    probes = data.digest(images, encoded)
    bar = tqdm(chosen, desc="sketches", unit="teacher", disable=None if progress else True)
    return tuple(_sketch(root, card, images, encoded, probes, batch_size) for card in bar)


def _sketch(
    root: Root, card: Card, images: Images, encoded: np.ndarray, probes: str, batch_size: int
) -> Sketch:
    path = repository.teacher_folder(root, card.name) / SKETCH
    stamp = {"teacher_digest": card.digest, "probes_digest": probes, "format": str(_FORMAT)}
    kept = _kept(path, stamp)
    if kept is not None:
        return kept
    said = observations.observe(root, card.name, images, batch_size=batch_size)
    made = sketch(said.probabilities, encoded)
    stamps = {key: np.asarray(value, np.str_) for key, value in stamp.items()}
    contents = np.asarray(_digest(made), np.str_)
    try:
        files.write_arrays(path, {**made._asdict(), **stamps, "contents_digest": contents})
    except OSError as error:
        # The sketch is at hand; a faculty on a read-only disk is no reason to lose it.
        warnings.warn(f"cannot keep {path} for next time ({error})", stacklevel=4)
    return made


def _kept(path: Path, stamp: Mapping[str, str]) -> Sketch | None:
    """A sketch made earlier of the same teacher and probes, None if it has to be made."""
    if not path.exists():
        return None
    try:
        arrays = files.read_arrays(path)
        if any(str(arrays.get(key)) != value for key, value in stamp.items()):
            return None
        found = Sketch(arrays["vectors"], arrays["masses"])
        if _digest(found) != str(arrays["contents_digest"]):
            raise OSError("its contents are not those that were written")
    except (OSError, KeyError) as error:
        warnings.warn(f"making {path} again, it is unreadable ({error})", stacklevel=5)
        return None
    return found


def _digest(one: Sketch) -> str:
    return files.digest(one._asdict())
