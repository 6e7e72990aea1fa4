"""What each teacher says of a set of images, computed once and kept on disk."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from tqdm import tqdm

from fdjax import checks, data
from fdjax.faculty import files, kept, repository, running
from fdjax.faculty.cards import Card, preprocessing_of
from fdjax.faculty.repository import Root
from fdjax.types import TeacherOutputs

Images = (
    UInt8[np.ndarray, "examples height width channels"]
    | Float32[np.ndarray, "examples height width channels"]
)

# Batches of one part of an observation: what a kill can cost.
_BATCHES = 16


def observe(
    root: Root,
    name: str,
    images: Images,
    *,
    batch_size: int = 512,
    keep: kept.Keep = "float32",
) -> TeacherOutputs:
    """What one teacher says of images.

    The answer is kept under `outputs` in the faculty, part by part, so that an observation that
    was killed goes on. A kept one is used if the digests of images, teacher and preprocessing
    inside it agree. It is computed again if it is unreadable (with a warning) or was made with
    other preprocessing; one of other images or another teacher has been moved by hand and is
    refused. A faculty that cannot be written is only read (with a warning).

    Args:
        root: A faculty.
        name: Of the teacher.
        images: As loaded: uint8 in 0..255, or float32 in [0, 1].
        batch_size: Images that run through the network at once, >= 1.
        keep: How the answer is kept, and so given back: "float32" exactly; "float16" in half the
            space; a number, the probabilities of so many likeliest labels in float16, the rest of
            the mass being spread evenly over the other labels. A teacher known by its outputs
            gives them as they are.

    Returns:
        NumPy arrays, those kept exactly mapped from disk; features and class vectors are None
        where they are not known.

    Raises:
        InputError: If there is no such teacher, its files are broken, it is known only by its
            outputs on other images, or it answers NaN.
    """
    images = _checked(images, batch_size, keep)
    card = repository.read_card(root, name)
    return _observe(root, card, images, data.digest(images), batch_size, keep)


def observe_all(
    root: Root,
    images: Images,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 512,
    keep: kept.Keep = "float32",
    progress: bool = False,
) -> tuple[TeacherOutputs, ...]:
    """What every teacher says of images, see `observe`.

    Args:
        root: A faculty with at least one teacher.
        images: As loaded: uint8 in 0..255, or float32 in [0, 1].
        names: Which teachers, in which order; by default all, in the order of `cards`.
        batch_size: Images that run through a network at once, >= 1.
        keep: As for `observe`.
        progress: Whether to show a bar; only on a terminal.

    Raises:
        InputError: As `observe`.
    """
    images = _checked(images, batch_size, keep)
    chosen = (
        repository.cards(root)
        if names is None
        else tuple(repository.read_card(root, name) for name in names)
    )
    checks.require(
        len(chosen) > 0,
        f"no teacher to ask in the faculty at {os.path.abspath(root)}; register one.",
    )
    images_digest = data.digest(images)
    # `disable=None` shows the bar on a terminal only.
    bar = tqdm(chosen, desc="teachers", unit="teacher", disable=None if progress else True)
    return tuple(_observe(root, card, images, images_digest, batch_size, keep) for card in bar)


def _checked(images: Images, batch_size: int, keep: kept.Keep) -> Images:
    kept.check(keep)
    checks.positive("batch_size", batch_size)
    images = np.asarray(images)
    checks.shape("images", images, (None, None, None, None))
    checks.require(len(images) > 0, "`images` must hold at least one image.")
    checks.require(
        images.dtype in (np.uint8, np.float32),
        f"`images` must be uint8 or float32, got {images.dtype}.",
    )
    return images


def _observe(
    root: Root, card: Card, images: Images, images_digest: str, batch_size: int, keep: kept.Keep
) -> TeacherOutputs:
    if card.preprocessing is None:
        arrays = repository.load_outputs(root, card)
        checks.require(
            str(arrays["images_digest"]) == images_digest,
            f"teacher {card.name!r} is known only by its outputs on other images; register its "
            "outputs on these images, or leave it out by `names`.",
        )
        return _teacher_outputs(card, arrays)
    path = Path(os.path.abspath(root))
    place = kept.place(path, card, images_digest, len(images), keep)
    files.require_inside(path, place.folder)
    try:
        found = kept.read(place)
    except OSError as error:
        found = None
        warnings.warn(f"computing {place.folder} again, it is unreadable ({error})", stacklevel=3)
    if found is None:
        found = _run(root, card, images, place, batch_size)
    return _teacher_outputs(card, kept.decoded(found, place.classes))


def _teacher_outputs(card: Card, arrays: Mapping[str, Any]) -> TeacherOutputs:
    def number(value: int | float | None) -> np.ndarray:
        return np.asarray(np.nan if value is None else value, np.float32)

    return TeacherOutputs(
        probabilities=arrays["probabilities"],
        features=arrays.get("features"),
        class_vectors=arrays.get("class_vectors"),
        class_mask=np.ones(len(card.class_names), bool),
        source_accuracy=number(card.source_accuracy),
        num_parameters=number(card.num_parameters),
    )


def _run(
    root: Root, card: Card, images: Images, place: kept.Place, batch_size: int
) -> dict[str, np.ndarray]:
    """Runs a teacher over images in batches of one size, so that it is compiled once."""
    ready = running.runner(root, card)
    size = ready.batch_size or min(batch_size, len(images))

    def answer(start: int, stop: int) -> kept.Arrays:
        inputs = data.preprocess(images[start:stop], preprocessing_of(card))
        said, shown = [], []
        for row in range(0, len(inputs), size):
            batch = inputs[row : row + size]
            filled = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
            filled[: len(batch)] = batch
            probabilities, features = ready.answer(filled)
            said.append(probabilities[: len(batch)])
            if features is not None:
                shown.append(features[: len(batch)])
        arrays = [np.concatenate(pieces) for pieces in (said, shown) if pieces]
        checks.require(
            all(bool(np.isfinite(array).all()) for array in arrays),
            f"teacher {card.name!r} answers NaN or infinity, so its weights or its preprocessing "
            "are broken; register a sound one with `replace=True`, or leave it out by `names`.",
        )
        features = arrays[1] if shown else None
        return kept.encoded(arrays[0], features, place.about["keep"], card.name)

    return kept.write(place, _BATCHES * size, answer, ready.class_vectors)
