"""A task is labelled images to learn from and labelled images to be judged by."""

import collections
import dataclasses
import functools
import hashlib
import operator
import zlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Int, UInt8

from fdjax import checks
from fdjax.types import UNLABELLED

Images: TypeAlias = (
    UInt8[np.ndarray, "examples height width channels"]
    | Float32[np.ndarray, "examples height width channels"]
)
"""Images as they are kept: uint8 in 0..255, or float32."""


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels; both arrays are read-only.

    Attributes:
        images: [examples, height, width, channels]; uint8 in 0..255, or float32 once
            preprocessed.
        labels: [examples], int32; the class, `types.UNLABELLED` (-1) where it is unknown.

    Raises:
        InputError: If shapes, types or numbers do not fit.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        checks.shape("images", self.images, (None, None, None, None))
        checks.shape("labels", self.labels, (None,))
        checks.require(
            self.images.dtype in (np.uint8, np.float32),
            f"`images` must be uint8 or float32, got {self.images.dtype}.",
        )
        checks.require(
            self.labels.dtype == np.int32, f"`labels` must be int32, got {self.labels.dtype}."
        )
        checks.require(
            len(self.images) == len(self.labels),
            f"`images` and `labels` must be equally many, got {len(self.images)} images and "
            f"{len(self.labels)} labels.",
        )
        # Digests are remembered, so the arrays behind them must not change.
        object.__setattr__(self, "images", _read_only(self.images))
        object.__setattr__(self, "labels", _read_only(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, indices: Int[np.ndarray, " chosen"]) -> "Split":
        """The examples at `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A classification problem: `train` may hold unlabelled images, `test` may not.

    Attributes:
        name: What reports call it.
        train: Images to learn from.
        test: Images to be judged by; of the same size as `train`.
        class_names: Name of each label, all different.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.require(len(self.class_names) > 0, "`class_names` must name at least one class.")
        name, times = collections.Counter(self.class_names).most_common(1)[0]
        checks.require(
            times == 1, f"`class_names` must differ from each other; {name!r} stands {times} times."
        )
        checks.labels("train labels", self.train.labels, self.num_classes, unlabelled=True)
        checks.labels("test labels", self.test.labels, self.num_classes)
        checks.require(
            self.train.images.shape[1:] == self.test.images.shape[1:],
            f"train and test images must have one size, got {self.train.images.shape[1:]} and "
            f"{self.test.images.shape[1:]}.",
        )

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.class_names)

    @functools.cached_property
    def digest(self) -> str:
        """Fingerprint of images, labels and class names; the task's name does not matter."""
        names = np.asarray(self.class_names, dtype=np.str_)
        parts = (self.train.images, self.train.labels, self.test.images, self.test.labels)
        return digest(*parts, names)


def digest(*arrays: np.ndarray) -> str:
    """Fingerprint of arrays: SHA-256, in hexadecimal, of their types, shapes and contents."""
    sha = hashlib.sha256()
    for array in arrays:
        # Little-endian, so that every machine agrees.
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        sha.update(f"{plain.dtype.str}{array.shape};".encode())
        sha.update(plain.view(np.uint8).reshape(-1).data if plain.size else b"")
    return sha.hexdigest()


def restrict(
    task: Task, classes: Sequence[int | np.integer | str], *, name: str | None = None
) -> Task:
    """The task of telling only some of its classes apart.

    Args:
        task: A task without unlabelled images (restrict first, then `few_shot`).
        classes: Names or labels of the classes to keep; the first becomes label 0.
        name: Name of the new task; by default the old one.

    Returns:
        The images of these classes, in their old order.

    Raises:
        InputError: If a class is unknown or stands twice, or images are unlabelled.
    """
    kept = [_class_label(task, wanted) for wanted in classes]
    checks.require(len(kept) > 0, "`classes` must name at least one class.")
    for position, label in enumerate(kept):
        checks.require(
            label not in kept[:position],
            f"`classes` names {task.class_names[label]!r} twice; name each class once.",
        )
    checks.require(
        not (task.train.labels == UNLABELLED).any(),
        f"task {task.name!r} has images without a label, so their class cannot be told; "
        "call `restrict` before `few_shot`.",
    )
    new_label = np.full(task.num_classes, UNLABELLED, np.int32)
    new_label[kept] = np.arange(len(kept), dtype=np.int32)

    def of(part: Split) -> Split:
        labels = new_label[part.labels]
        rows = np.flatnonzero(labels != UNLABELLED)
        return Split(part.images[rows], labels[rows])

    names = tuple(task.class_names[label] for label in kept)
    return Task(task.name if name is None else name, of(task.train), of(task.test), names)


def few_shot(task: Task, shots: int, *, seed: int, unlabelled: int | None = None) -> Task:
    """The task with few labels: `shots` of each class, the other images unlabelled.

    With one seed, more shots contain the fewer, so that a curve over `shots` compares
    growing sets and not different ones.

    Args:
        task: The task to take labels from.
        shots: Labelled train images of each class, at least 1.
        seed: Which images; >= 0.
        unlabelled: How many of the remaining train images to keep without a label: all
            of them by default.

    Returns:
        A task whose train part has the labelled images first; the test part is untouched.

    Raises:
        InputError: If a class, or the remainder, has too few images.
    """
    checks.positive("shots", shots)
    labels = task.train.labels
    chosen = []
    for label, name in enumerate(task.class_names):
        rows = np.flatnonzero(labels == label)
        checks.require(
            len(rows) >= shots,
            f"`shots` is {shots}, but class {name!r} of task {task.name!r} has only {len(rows)} "
            "labelled train images; lower `shots` or restrict the task.",
        )
        chosen.append(np.sort(generator(seed, "shots", label).permutation(rows)[:shots]))
    labelled = np.concatenate(chosen)
    rest = np.setdiff1d(np.arange(len(labels)), labelled)
    if unlabelled is not None:
        checks.require(
            0 <= unlabelled <= len(rest),
            f"`unlabelled` must lie in [0, {len(rest)}], the train images of task {task.name!r} "
            f"that are left after {shots} shots, got {unlabelled}.",
        )
        rest = np.sort(generator(seed, "rest").permutation(rest)[:unlabelled])
    new_labels = np.concatenate([labels[labelled], np.full(len(rest), UNLABELLED, np.int32)])
    images = task.train.images[np.concatenate([labelled, rest])]
    return dataclasses.replace(task, train=Split(images, new_labels))


def split(part: Split, fraction: float, *, seed: int) -> tuple[Split, Split]:
    """Two parts with the same mixture of classes; unlabelled images count as one class.

    Args:
        part: What to divide.
        fraction: Share of each class, between 0 and 1, that goes to the first part; a
            class of two or more images has at least one in either.
        seed: Which images; >= 0.

    Returns:
        The first part and the second, each in the old order.
    """
    checks.require(0 < fraction < 1, f"`fraction` must lie between 0 and 1, got {fraction}.")
    first = np.zeros(len(part), bool)
    for label in np.unique(part.labels):
        rows = np.flatnonzero(part.labels == label)
        count = round(fraction * len(rows))
        if len(rows) > 1:
            count = min(max(count, 1), len(rows) - 1)
        # Unlabelled is -1 and a key is not negative.
        first[generator(seed, "part", int(label) + 1).permutation(rows)[:count]] = True
    checks.require(
        bool(first.any()) and not bool(first.all()),
        f"`part` has {len(part)} images, too few to divide at `fraction` {fraction}.",
    )
    return part.rows(np.flatnonzero(first)), part.rows(np.flatnonzero(~first))


def synthetic(
    *,
    num_classes: int = 5,
    height: int = 8,
    width: int = 8,
    channels: int = 1,
    train_per_class: int = 40,
    test_per_class: int = 20,
    noise: float = 0.3,
    seed: int = 0,
) -> Task:
    """A made-up task for tests: a random pattern for each class, and noise upon it.

    Args:
        num_classes: Number of classes.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        channels: Of the images.
        train_per_class: Train images of each class.
        test_per_class: Test images of each class.
        noise: Standard deviation of the noise, where the brightness of the patterns is
            spread evenly over [0, 1].
        seed: Which patterns and which noise; >= 0.

    Returns:
        A task with uint8 images; the classes take turns.
    """
    size = (num_classes, -(-height // 2), -(-width // 2), channels)
    coarse = generator(seed, "patterns").random(size)
    # Patches of 2 x 2 equal pixels survive pooling and small shifts.
    patterns = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]

    def draw(per_class: int, item: int) -> Split:
        labels = np.tile(np.arange(num_classes, dtype=np.int32), per_class)
        grain = generator(seed, "noise", item).standard_normal((len(labels), *patterns.shape[1:]))
        brightness = np.clip(patterns[labels] + noise * grain, 0, 1)
        return Split(np.rint(255 * brightness).astype(np.uint8), labels)

    names = tuple(f"class_{label}" for label in range(num_classes))
    return Task("synthetic", draw(train_per_class, 0), draw(test_per_class, 1), names)


def _class_label(task: Task, wanted: int | np.integer | str) -> int:
    known = ", ".join(task.class_names)
    if isinstance(wanted, str):
        checks.require(
            wanted in task.class_names,
            f"task {task.name!r} has no class {wanted!r}; its classes are {known}.",
        )
        return task.class_names.index(wanted)
    label = operator.index(wanted)
    checks.require(
        0 <= label < task.num_classes,
        f"task {task.name!r} has no class {label}; its labels are 0 to {task.num_classes - 1}: "
        f"{known}.",
    )
    return label


def philox(seed: int, use: str, item: int = 0) -> np.random.Philox:
    """A stream of random bits of its own for each seed, use and item."""
    check_seed(seed)
    key = np.array([seed, zlib.crc32(use.encode())], np.uint64)
    # An item starts at a counter that the item before would reach after 2**192 draws.
    counter = np.array([0, 0, 0, item], np.uint64)
    return np.random.Philox(key=key, counter=counter)


def check_seed(seed: int) -> None:
    """Refuses what cannot be a key of Philox."""
    checks.require(0 <= seed < 2**64, f"`seed` must lie in [0, 2**64), got {seed}.")


def generator(seed: int, use: str, item: int = 0) -> np.random.Generator:
    """Random numbers of their own for each seed, use and item."""
    return np.random.Generator(philox(seed, use, item))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
