"""Tasks from the user's own files: arrays in an .npz, or images in class folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from fdjax import checks
from fdjax.data import npz
from fdjax.data.tasks import Images, Split, Task, split
from fdjax.types import UNLABELLED

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "class_names")
_ARRAYS_WANTED = f"an .npz must hold {', '.join(_ARRAYS)}"

_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".pgm", ".ppm"),
)

# Modes of Pillow with 8 bits a channel, or fewer.
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def read_arrays(path: Path) -> Task:
    """The task in an .npz with train_images, train_labels, test_images, test_labels, class_names.

    Images are uint8 in 0..255 or float32, with axes examples, height, width and, unless
    grey, channels. Labels are whole numbers; a train label may be -1, for unknown. Other
    arrays in the file are left alone.

    Raises:
        InputError: Naming the file, the array and the mend.
    """
    checks.require(path.is_file(), f"{path}: there is no such file; give the path of an .npz.")
    found = _arrays(path)
    class_names = _class_names(path, found["class_names"])
    parts = []
    for part, unlabelled in (("train", True), ("test", False)):
        images = _images(f"{path}: {part}_images", found[f"{part}_images"])
        name = f"{path}: {part}_labels"
        labels = _labels(name, found[f"{part}_labels"], len(class_names), unlabelled=unlabelled)
        checks.require(
            len(images) == len(labels),
            f"{path}: {part}_images has {len(images)} images, but {part}_labels has "
            f"{len(labels)} labels; save one label for each image.",
        )
        parts.append(Split(images, labels))
    train, test = parts
    checks.require(
        train.images.shape[1:] == test.images.shape[1:],
        f"{path}: train_images are {_size(train)}, but test_images are {_size(test)}; save both "
        "in one size.",
    )
    checks.require(
        train.images.dtype == test.images.dtype,
        f"{path}: train_images are {train.images.dtype}, but test_images are "
        f"{test.images.dtype}; save both in one type.",
    )
    return Task(path.stem, train, test, class_names)


def read_folder(root: Path) -> Task:
    """The task in a folder of class folders of images.

    Either `root/train/CLASS/*` and `root/test/CLASS/*`, or `root/CLASS/*`, of which a
    fixed fifth of each class becomes the test part. Classes are sorted by name, images by
    file name. If every image is grey the task has one channel, else three; transparency
    is dropped. Hidden files and files that are no images are left alone.

    Raises:
        InputError: Naming the folder or the file, and the mend.
    """
    checks.require(root.is_dir(), f"{root}: there is no such folder.")
    root = root.resolve()
    given = [part for part in ("train", "test") if (root / part).is_dir()]
    checks.require(
        len(given) != 1,
        f"{root} has {'/'.join(given)}/ but not the other of train/ and test/; add it, or give "
        "a folder of class folders, which is then split 80/20.",
    )
    folders = [_class_folders(root / part) for part in given] or [_class_folders(root)]
    class_names = tuple(folders[0])
    for folder in folders[1:]:
        unknown = sorted(set(folder) - set(class_names))
        if unknown:
            raise checks.InputError(
                f"{root}/test has the class {unknown[0]!r}, which {root}/train has not; give it "
                "train images or remove it."
            )
    files = [
        (path, part, class_names.index(name))
        for part, folder in enumerate(folders)
        for name, paths in folder.items()
        for path in paths
    ]
    images = _read_images([path for path, _, _ in files])
    part_of = np.asarray([part for _, part, _ in files])
    labels = np.asarray([label for _, _, label in files], np.int32)
    everything = Split(images, labels)
    if given:
        train, test = (everything.rows(np.flatnonzero(part_of == part)) for part in (0, 1))
    else:
        train, test = split(everything, 0.8, seed=0)
    return Task(root.name, train, test, class_names)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        found = npz.read(path, only=_ARRAYS)
    except OSError as error:
        raise checks.InputError(
            f"{path} is not a whole .npz file; save it again with numpy.savez. ({error})"
        ) from error
    for name in _ARRAYS:
        checks.require(name in found, f"{path}: {name} is missing; {_ARRAYS_WANTED}.")
    return found


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    checks.require(
        names.ndim == 1 and names.size > 0 and names.dtype.kind == "U",
        f"{path}: class_names must be a list of text, one name for each label, got shape "
        f"{names.shape} of {names.dtype}; save numpy.array(names, dtype=str).",
    )
    unique, counts = np.unique(names, return_counts=True)
    checks.require(
        len(unique) == len(names),
        f"{path}: class_names has {str(unique[counts.argmax()])!r} more than once; give every "
        "class a name of its own.",
    )
    return tuple(names.tolist())


def _images(name: str, images: np.ndarray) -> Images:
    checks.require(
        images.dtype in (np.uint8, np.float32),
        f"{name} must be uint8 in 0..255 or float32, got {images.dtype}; convert it with "
        "`.astype`.",
    )
    checks.require(
        images.ndim in (3, 4) and images.size > 0,
        f"{name} must have the axes examples, height, width and channels, none of them empty, got "
        f"shape {images.shape}.",
    )
    checks.finite(name, images)
    return images if images.ndim == 4 else images[..., np.newaxis]


def _labels(
    name: str, labels: np.ndarray, num_classes: int, *, unlabelled: bool
) -> Int32[np.ndarray, " examples"]:
    checks.require(
        labels.dtype.kind in "iu" and labels.ndim == 1,
        f"{name} must be one whole number for each image, got shape {labels.shape} of "
        f"{labels.dtype}; save shape (examples,) of int32.",
    )
    low = UNLABELLED if unlabelled else 0
    wrong = np.flatnonzero((labels < low) | (labels >= num_classes))
    if wrong.size:
        raise checks.InputError(
            f"{name} must lie in [{low}, {num_classes - 1}] since class_names has {num_classes} "
            f"names, got {labels[wrong[0]]} at position {wrong[0]}; number the labels from 0, or "
            "add the missing names."
        )
    return labels.astype(np.int32)


def _size(part: Split) -> str:
    return " x ".join(map(str, part.images.shape[1:]))


def _class_folders(root: Path) -> dict[str, list[Path]]:
    """Images of each class folder, both sorted by name."""
    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] not in "._"
    )
    checks.require(
        len(names) > 0,
        f"{root} has no class folders; put the images of each class in a folder of its name.",
    )
    found = {}
    for name in names:
        found[name] = sorted(
            path
            for path in (root / name).iterdir()
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
        )
        checks.require(
            len(found[name]) > 0,
            f"{root / name} has no images ({', '.join(_SUFFIXES)}); add some or remove the folder.",
        )
    return found


def _read_images(
    paths: Sequence[Path],
) -> UInt8[np.ndarray, "examples height width channels"]:
    from PIL import Image
    from tqdm import tqdm

    pictures = []
    # Grey pictures are kept grey until the last is known: one in colour colours them all.
    for path in tqdm(paths, desc="reading images", unit="image", disable=None, leave=False):
        try:
            with Image.open(path) as image:
                mode = image.mode
                grey = mode in _GREY_MODES
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
        except Exception as error:  # whatever hostile bytes make Pillow's parsers raise
            raise checks.InputError(
                f"{path} cannot be read as an image; mend or remove it. ({error})"
            ) from error
        checks.require(
            mode in _GREY_MODES + _COLOUR_MODES,
            f"{path} has pixels of Pillow's mode {mode!r}; save it with 8 bits a channel.",
        )
        pictures.append(pixels[..., np.newaxis] if grey else pixels)
        checks.require(
            pixels.shape[:2] == pictures[0].shape[:2],
            f"all images must have one size, but {paths[0]} is "
            f"{' x '.join(map(str, pictures[0].shape[:2]))} and {path} is "
            f"{' x '.join(map(str, pixels.shape[:2]))} (height x width); bring them to one size.",
        )
    channels = max(picture.shape[-1] for picture in pictures)
    height, width = pictures[0].shape[:2]
    images = np.empty((len(pictures), height, width, channels), np.uint8)
    for row, picture in enumerate(pictures):
        images[row] = picture
    return images
