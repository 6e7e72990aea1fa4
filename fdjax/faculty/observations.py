"""What each teacher says of a set of images, computed once and kept on disk."""

import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8
from tqdm import tqdm

from fdjax import checks, data, models
from fdjax.faculty import files, repository
from fdjax.faculty.cards import Card, preprocessing_of
from fdjax.faculty.repository import Root
from fdjax.types import TeacherOutputs, Variables

Images = (
    UInt8[np.ndarray, "examples height width channels"]
    | Float32[np.ndarray, "examples height width channels"]
)

# Raised when the same weights and images would give other numbers than before.
_FORMAT = 1


def observe(root: Root, name: str, images: Images, *, batch_size: int = 512) -> TeacherOutputs:
    """What one teacher says of images.

    The answer is kept under `outputs` in the faculty. A kept file is used if the digests of
    images, teacher and preprocessing inside it agree. It is computed again if it is
    unreadable (with a warning) or was made with other preprocessing; a file of other images
    or another teacher has been moved by hand and is refused. A faculty that cannot be
    written is only read (with a warning).

    Args:
        root: A faculty.
        name: Of the teacher.
        images: As loaded: uint8 in 0..255, or float32 in [0, 1].
        batch_size: Images that run through the network at once, >= 1.

    Returns:
        NumPy arrays; features and class vectors are None for a teacher known by its
        probabilities only.

    Raises:
        InputError: If there is no such teacher, its files are broken, it is known only by its
            outputs on other images, or it answers NaN.
    """
    images = _checked(images, batch_size)
    card = repository.read_card(root, name)
    return _observe(root, card, images, data.digest(images), batch_size)


def observe_all(
    root: Root,
    images: Images,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 512,
    progress: bool = False,
) -> tuple[TeacherOutputs, ...]:
    """What every teacher says of images, see `observe`.

    Args:
        root: A faculty with at least one teacher.
        images: As loaded: uint8 in 0..255, or float32 in [0, 1].
        names: Which teachers, in which order; by default all, in the order of `cards`.
        batch_size: Images that run through a network at once, >= 1.
        progress: Whether to show a bar; only on a terminal.

    Raises:
        InputError: As `observe`.
    """
    images = _checked(images, batch_size)
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
    return tuple(_observe(root, card, images, images_digest, batch_size) for card in bar)


def _checked(images: Images, batch_size: int) -> Images:
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
    root: Root, card: Card, images: Images, images_digest: str, batch_size: int
) -> TeacherOutputs:
    if card.preprocessing is None:
        arrays = repository.load_outputs(root, card)
        checks.require(
            str(arrays["images_digest"]) == images_digest,
            f"teacher {card.name!r} is known only by its outputs on other images; register its "
            "outputs on these images, or leave it out by `names`.",
        )
        return _teacher_outputs(card, arrays)
    folder = Path(os.path.abspath(root)) / "outputs" / images_digest
    path = folder / f"{card.name}-{card.digest}.npz"
    stamp = {
        "images_digest": np.asarray(images_digest),
        "teacher_digest": np.asarray(card.digest),
        "preprocessing": np.asarray(repr(card.preprocessing)),
        "format": np.asarray(_FORMAT),
    }
    kept = _read_kept(path, card, stamp)
    if kept is None:
        kept = _run(root, card, images, batch_size)
        _keep(path, {**kept, **stamp})
    return _teacher_outputs(card, kept)


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


def _read_kept(
    path: Path, card: Card, stamp: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """An observation kept earlier, None if it has to be computed."""
    if not path.exists():
        return None
    try:
        kept = files.read_arrays(path)
        missing = {*stamp, "probabilities", "features", "class_vectors"} - set(kept)
        if missing:
            raise OSError(f"it lacks {', '.join(sorted(missing))}")
    except OSError as error:
        warnings.warn(f"computing {path} again, it is unreadable ({error})", stacklevel=4)
        return None
    for key in ("images_digest", "teacher_digest"):
        checks.require(
            str(kept[key]) == str(stamp[key]),
            f"{path} was not made for teacher {card.name!r} and these images: the {key} inside "
            "differs from its name, so it was moved by hand; delete it.",
        )
    fresh = all(str(kept[key]) == str(stamp[key]) for key in ("preprocessing", "format"))
    return kept if fresh else None


def _keep(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_arrays(path, arrays)
    except OSError as error:
        # The answer is at hand; a faculty on a read-only disk is no reason to lose it.
        warnings.warn(f"cannot keep {path} for next time ({error})", stacklevel=4)


def _run(root: Root, card: Card, images: Images, batch_size: int) -> dict[str, np.ndarray]:
    """Runs a teacher over images in batches of one size, so that it is compiled once."""
    card, _, variables = repository.load(root, card.name)
    model = repository.network(card)
    inputs = data.preprocess(images, preprocessing_of(card))
    on_device = jax.device_put(variables)
    size = min(batch_size, len(inputs))
    pieces = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        filled = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
        filled[: len(batch)] = batch
        answer = _forward(model, on_device, filled)
        pieces.append([np.asarray(array)[: len(batch)] for array in answer])
    probabilities, features = map(np.concatenate, zip(*pieces, strict=True))
    checks.require(
        bool(np.isfinite(probabilities).all()) and bool(np.isfinite(features).all()),
        f"teacher {card.name!r} answers NaN or infinity, so its weights or its preprocessing are "
        "broken; register a sound one with `replace=True`, or leave it out by `names`.",
    )
    vectors = np.asarray(models.class_vectors(variables))
    return {"probabilities": probabilities, "features": features, "class_vectors": vectors}


# The weights are an argument, so teachers of one architecture and number of labels share
# one compiled function: equal modules are equal static arguments.
@functools.partial(jax.jit, static_argnames="model")
def _forward(
    model: nn.Module, variables: Variables, images: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch features"] | None]:
    outputs = models.predict(model, variables, images)
    return jax.nn.softmax(outputs.logits), outputs.features
