"""Tasks of tensorflow-datasets, read from prepared records without TensorFlow."""

import contextlib
import hashlib
import io
import os
import re
import shlex
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from fdjax import checks
from fdjax.data import npz
from fdjax.data.tasks import Split, Task, split

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_FORMAT = "array_record"
_CACHE = "fdjax_decoded.npz"

# Records that are decoded at once.
_CHUNK = 1024


def default_data_dir() -> Path:
    """Where tensorflow-datasets keeps its data: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def preparing_command(name: str, data_dir: Path) -> str:
    """The command that prepares a data set so that `load` can read it."""
    arguments = f"{shlex.quote(name)} --data_dir {shlex.quote(str(data_dir))}"
    return f"pip install 'fdjax[prepare]' && python -m fdjax.data.prepare {arguments}"


def find_builder(name: str, data_dir: Path) -> "tfds.core.DatasetBuilder | None":
    """The builder that tensorflow-datasets has for a name, or None if it has none.

    Data sets that are only files in `data_dir`, without code, are found too.

    Raises:
        InputError: If the data set is known, but not its config or version.
    """
    import tensorflow_datasets as tfds

    stem = re.split("[/:]", name)[0]
    registered = stem in tfds.list_builders(with_community_datasets=False)
    if not registered:
        # A folder, a typing error, a place on the network; or records without their code.
        folder = data_dir / stem
        if not re.fullmatch(r"\w+", stem) or not any(folder.rglob("dataset_info.json")):
            return None
    try:
        return tfds.builder(name, data_dir=str(data_dir))
    except Exception as error:  # of a name, or whatever damage makes the parsers raise
        configs = tfds.builder_cls(stem).builder_configs if registered else ()
        known = f", one of {', '.join(configs)}" if configs else ""
        reason = " ".join(str(error).split())
        raise checks.InputError(
            f"tensorflow-datasets cannot make the data set {name!r}; mend its version or its "
            f"config{known}; if its files in {data_dir} are damaged, delete and prepare them "
            f"again. ({reason})"
        ) from error


def prepare(
    name: str,
    builder: "tfds.core.DatasetBuilder",
    data_dir: Path,
    *,
    manual_dir: Path | None = None,
    download_dir: Path | None = None,
) -> None:
    """Writes a builder's records as array_record, unless they are there already.

    Raises:
        InputError: If they are there in another form, a file cannot be had or is not the
            one expected, or `data_dir` cannot be written.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    # Google's store of prepared data has other file formats, and asking it takes long offline.
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        builder.download_and_prepare(
            download_dir=download_dir or data_dir / "downloads",
            download_config=config,
            file_format=_FORMAT,
        )
    except PermissionError as error:
        raise _unwritable(name, data_dir, error) from error
    except (OSError, AssertionError, NonMatchingChecksumError, DownloadError) as error:
        raise checks.InputError(
            f"data set {name!r} cannot be prepared; bring its files in a folder of their own as "
            f"--manual_dir, under the names that they have at their source. ({error})"
        ) from error
    _check_format(name, builder, data_dir)


def read_digits(data_dir: Path) -> Task:
    """The embedded digits, prepared in `data_dir` at the first call."""
    builder = _digits(data_dir)
    if not builder.info.splits:
        # A second's work on bundled data needs no report of downloads.
        silence = io.StringIO()
        try:
            with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
                builder.download_and_prepare(
                    download_dir=data_dir / "downloads", file_format=_FORMAT
                )
        except OSError as error:
            # Another process may have been first to put the same records there.
            builder = _digits(data_dir)
            if not builder.info.splits:
                raise _unwritable("digits", data_dir, error) from error
    return read_builder("digits", builder, data_dir)


def _digits(data_dir: Path) -> "tfds.core.DatasetBuilder":
    from fdjax.data.digits import FdjaxDigits

    try:
        return FdjaxDigits(data_dir=str(data_dir))
    except Exception as error:  # whatever damage makes the parsers raise
        reason = " ".join(str(error).split())[:300]
        raise checks.InputError(
            f"what describes the digits in {data_dir} cannot be read; delete its folder "
            f"{FdjaxDigits.name} to have it made again. ({reason})"
        ) from error


def read_builder(name: str, builder: "tfds.core.DatasetBuilder", data_dir: Path) -> Task:
    """The task whose records a builder of tensorflow-datasets has prepared.

    The decoded images are kept beside the records, in fdjax_decoded.npz, which may be
    deleted at any time. A data set without a test part is judged by its validation part,
    or else by a fixed fifth of each class.

    Args:
        name: What the task will be called.
        builder: For array_record files; only its metadata have been read.
        data_dir: Named in messages.

    Raises:
        InputError: If the data set is not prepared, or not for image classification.
    """
    image_key, label_key = _keys(name, builder)
    if not builder.info.splits:
        raise checks.InputError(
            f"data set {name!r} is not prepared in {data_dir}; prepare it once by: "
            f"{preparing_command(name, data_dir)}"
        )
    _check_format(name, builder, data_dir)
    class_names = tuple(builder.info.features[label_key].names)
    parts = _chosen_parts(name, builder)
    cache = Path(builder.data_path) / _CACHE
    fingerprint = _fingerprint(cache.parent)
    arrays = _read_cache(cache, fingerprint)
    if arrays is None:
        arrays = {}
        for part in parts:
            images, labels = _decode(name, builder, part, image_key, label_key)
            arrays |= {f"{part}_images": images, f"{part}_labels": labels}
        _write_cache(cache, fingerprint, arrays)
    splits = [Split(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in parts]
    train, test = splits if len(splits) == 2 else split(splits[0], 0.8, seed=0)
    return Task(name, train, test, class_names)


def _check_format(name: str, builder: "tfds.core.DatasetBuilder", data_dir: Path) -> None:
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    checks.require(
        _FORMAT in formats,
        f"data set {name!r} is prepared in {data_dir} only as {', '.join(sorted(formats))}, which "
        f"needs TensorFlow to read; prepare it as {_FORMAT} in another folder by: "
        f"{preparing_command(name, data_dir / _FORMAT)}",
    )


def _unwritable(name: str, data_dir: Path, error: OSError) -> checks.InputError:
    return checks.InputError(
        f"data set {name!r} cannot be written to {data_dir} ({error}); give a folder that can be "
        "written, by --data_dir or `data_dir`."
    )


def _keys(name: str, builder: "tfds.core.DatasetBuilder") -> tuple[str, str]:
    """Names of the image and of the class among the features."""
    import tensorflow_datasets as tfds

    features = dict((builder.info.features or {}).items())
    # Where there are several, the pair that the data set itself names comes first.
    order = [*(builder.info.supervised_keys or ()), *features]
    labels = [key for key in order if isinstance(features.get(key), tfds.features.ClassLabel)]
    images = [
        key
        for key in order
        if isinstance(features.get(key), tfds.features.Tensor | tfds.features.Image)
        and len(features[key].shape) == 3
        and features[key].np_dtype == np.uint8
    ]
    checks.require(
        bool(images) and bool(labels),
        f"data set {name!r} is not for image classification: among its features {sorted(features)} "
        "there must be a uint8 image and a ClassLabel.",
    )
    size = features[images[0]].shape
    checks.require(
        None not in size,
        f"the images of data set {name!r} differ in size, {size}; bring them to one size and "
        "save them as an .npz or as class folders.",
    )
    return images[0], labels[0]


def _chosen_parts(name: str, builder: "tfds.core.DatasetBuilder") -> tuple[str, ...]:
    known = list(builder.info.splits)
    checks.require(
        "train" in known, f"data set {name!r} has no part `train`, only {', '.join(known)}."
    )
    tests = [part for part in ("test", "validation") if part in known]
    return ("train", *tests[:1])


def _decode(
    name: str, builder: "tfds.core.DatasetBuilder", part: str, image_key: str, label_key: str
) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    feature = builder.info.features[image_key]
    count = builder.info.splits[part].num_examples
    try:
        images = np.empty((count, *feature.shape), np.uint8)
        labels = np.empty(count, np.int32)
        source = builder.as_data_source(split=part)
        with tqdm(
            total=count, desc=f"{name} {part}", unit="image", disable=None, leave=False
        ) as bar:
            for start in range(0, count, _CHUNK):
                rows = range(start, min(start + _CHUNK, count))
                for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
                    images[row] = example[image_key]
                    labels[row] = example[label_key]
                bar.update(len(rows))
    except Exception as error:  # of readers in C++, of decoders, of sizes beyond memory
        raise checks.InputError(
            f"the records of data set {name!r} in {builder.data_path} cannot be read; delete that "
            f"folder and prepare the data set again. ({error})"
        ) from error
    if isinstance(feature, tfds.features.Image) and images.max(initial=0) == 1:
        # Pillow decodes PNGs of one bit to 0 and 1.
        images *= 255
    return images, labels


def _fingerprint(folder: Path) -> str:
    """Changes when the records beside the cache do."""
    sha = hashlib.sha256((folder / "dataset_info.json").read_bytes())
    for path in sorted(folder.iterdir()):
        if path.name.startswith(_CACHE):
            continue
        status = path.stat()
        sha.update(f"{path.name} {status.st_size} {status.st_mtime_ns};".encode())
    return sha.hexdigest()


def _read_cache(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """The decoded images; None where there are none, or those of other records."""
    try:
        arrays = npz.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        logging.warning("%s is damaged and will be written again: %s", path, error)
        return None
    told = arrays.pop("fingerprint", None)
    return arrays if str(told) == fingerprint else None


def _write_cache(path: Path, fingerprint: str, arrays: dict[str, Any]) -> None:
    partial = path.with_name(f"{_CACHE}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            np.savez(file, fingerprint=np.asarray(fingerprint), **arrays)
        os.replace(partial, path)
    except OSError as error:
        # Shared data may well be for reading only.
        logging.warning("decoded images are not kept, so loading stays slow: %s", error)
    finally:
        partial.unlink(missing_ok=True)
