"""Records of tensorflow-datasets, prepared and read without TensorFlow or a network."""

import io
import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fdjax import data
from fdjax.checks import InputError
from fdjax.data import prepare, records

COUNTS = {
    "tested": {"train": 6, "test": 3, "validation": 3},
    "validated": {"train": 6, "validation": 3},
    "alone": {"train": 20},
    "testonly": {"test": 3},
    "onebit": {"train": 4, "test": 4},
}


def picture(row: int, config: str) -> Image.Image:
    if config == "onebit":
        return Image.fromarray(np.arange(30).reshape(6, 5) % 2 == row % 2)
    return Image.fromarray(np.full((6, 5), 10 * row, np.uint8))


def png(image: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format="PNG")
    file.seek(0)
    return file


class FdjaxTestShapes(tfds.core.GeneratorBasedBuilder):
    """PNG files with a brightness of ten times their number; class = number mod 2."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in COUNTS]  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "coarse": tfds.features.ClassLabel(names=["all"]),
                    "picture": tfds.features.Image(shape=(6, 5, 1)),
                    "label": tfds.features.ClassLabel(names=["even", "odd"]),
                }
            ),
            supervised_keys=("picture", "label"),
        )

    def _split_generators(self, dl_manager):
        counts = COUNTS[self.builder_config.name]
        return {part: self._generate_examples(count) for part, count in counts.items()}

    def _generate_examples(self, count):
        for row in range(count):
            file = png(picture(row, self.builder_config.name))
            yield row, {"coarse": 0, "picture": file, "label": row % 2}


class FdjaxTestWords(tfds.core.GeneratorBasedBuilder):
    """Nothing to classify images by."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text()}
        if self.name == "fdjax_test_any_size":
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        raise AssertionError("never prepared")

    def _generate_examples(self):
        raise AssertionError("never prepared")


class FdjaxTestAnySize(FdjaxTestWords):
    """Images whose size is not known beforehand."""


@pytest.fixture
def prepared(tmp_path):
    """Prepares one config of the small data set and returns its name."""

    def write(config):
        name = f"fdjax_test_shapes/{config}"
        builder = tfds.builder(name, data_dir=str(tmp_path), file_format="array_record")
        builder.download_and_prepare(download_dir=tmp_path / "downloads")
        return name

    return write


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, data.load("digits", data_dir=folder)


def test_digits_have_the_documented_size_and_values(digits):
    _, task = digits
    assert (task.name, task.class_names) == ("digits", tuple("0123456789"))
    assert task.train.images.shape == (1258, 8, 8, 1)
    assert task.test.images.shape == (539, 8, 8, 1)
    # 0 .. 16 times 255 / 16, rounded.
    stretched = np.rint(np.arange(17) * 255 / 16)
    np.testing.assert_array_equal(np.unique(task.train.images), stretched)
    assert np.bincount(task.train.labels).min() > 120


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    _, task = digits
    ours = np.concatenate([task.train.images, task.test.images])[..., 0]
    labels = np.concatenate([task.train.labels, task.test.labels])
    theirs = load_digits()
    key = [
        (*np.rint(image.reshape(-1) * (16 / 255)), label)
        for image, label in zip(ours, labels, strict=True)
    ]
    expected = [
        (*image.reshape(-1), y) for image, y in zip(theirs.images, theirs.target, strict=True)
    ]
    assert sorted(key) == sorted(expected)


def test_digits_are_pinned_and_need_no_tensorflow(digits):
    folder, task = digits
    # Results are compared over years: neither the parts nor their order may change.
    assert task.digest == "f102941d51fb48856854a8476f4664fb238015a736fb60dc1b0d17a268a9da6d"
    assert data.load("digits", data_dir=folder).digest == task.digest
    assert "tensorflow" not in sys.modules


def test_digits_in_a_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written to .*file.*--data_dir"):
        data.load("digits", data_dir=file)
    with pytest.raises(InputError, match=r"cannot be written to .*file/sub.*--data_dir"):
        data.load("digits", data_dir=file / "sub")


def test_default_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert str(records.default_data_dir()) == "/somewhere"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert str(records.default_data_dir()) == "~/tensorflow_datasets"


def test_records_of_png_files_are_read(prepared, tmp_path):
    name = prepared("tested")
    task = data.load(name, data_dir=tmp_path)
    assert (task.name, task.class_names) == (name, ("even", "odd"))
    assert (len(task.train), len(task.test)) == (6, 3)
    brightness = task.train.images[:, 0, 0, 0]
    assert sorted(brightness) == [0, 10, 20, 30, 40, 50]
    np.testing.assert_array_equal(brightness // 10 % 2, task.train.labels)
    assert "tensorflow" not in sys.modules


def test_validation_stands_in_for_a_missing_test_part(prepared, tmp_path):
    assert len(data.load(prepared("validated"), data_dir=tmp_path).test) == 3


def test_train_alone_is_split_by_class(prepared, tmp_path):
    name = prepared("alone")
    task = data.load(name, data_dir=tmp_path)
    assert np.bincount(task.train.labels).tolist() == [8, 8]
    assert np.bincount(task.test.labels).tolist() == [2, 2]
    assert data.load(name, data_dir=tmp_path).digest == task.digest


def test_one_bit_pictures_are_black_and_white(prepared, tmp_path):
    task = data.load(prepared("onebit"), data_dir=tmp_path)
    assert np.unique(task.train.images).tolist() == [0, 255]


def test_no_train_part_is_refused(prepared, tmp_path):
    with pytest.raises(InputError, match="has no part `train`, only test"):
        data.load(prepared("testonly"), data_dir=tmp_path)


def test_decoded_images_are_kept_and_may_be_deleted_or_damaged(prepared, tmp_path, monkeypatch):
    name = prepared("tested")
    task = data.load(name, data_dir=tmp_path)
    (cache,) = tmp_path.rglob("fdjax_decoded.npz*")
    with monkeypatch.context() as patch:
        patch.setattr(records, "_decode", None)  # Not called.
        assert data.load(name, data_dir=tmp_path).digest == task.digest
    cache.write_bytes(cache.read_bytes()[:100])
    assert data.load(name, data_dir=tmp_path).digest == task.digest
    cache.unlink()
    assert data.load(name, data_dir=tmp_path).digest == task.digest
    assert cache.exists()


def test_decoded_images_of_other_records_are_not_used(prepared, tmp_path):
    name = prepared("tested")
    task = data.load(name, data_dir=tmp_path)
    (cache,) = tmp_path.rglob("fdjax_decoded.npz")
    with np.load(cache) as kept:
        arrays = {key: kept[key] for key in kept.files}
    arrays["train_images"] = arrays["train_images"] + 1
    np.savez(cache, **arrays)
    assert data.load(name, data_dir=tmp_path).digest != task.digest
    os.utime(cache.parent / "features.json", (1, 1))
    assert data.load(name, data_dir=tmp_path).digest == task.digest


def test_folder_for_reading_only_still_loads(prepared, tmp_path, monkeypatch):
    name = prepared("tested")

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(data.load(name, data_dir=tmp_path).train) == 6
    assert not list(tmp_path.rglob("fdjax_decoded.npz*"))


def test_records_without_their_code_are_found(prepared, tmp_path):
    prepared("tested")
    (tmp_path / "fdjax_test_shapes").rename(tmp_path / "nobodys_shapes")
    for path in tmp_path.rglob("*"):
        if path.name.startswith("fdjax_test_shapes-"):
            path.rename(path.with_name(path.name.replace("fdjax_test_shapes", "nobodys_shapes")))
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("fdjax_test_shapes", "nobodys_shapes"))
    assert len(data.load("nobodys_shapes/tested", data_dir=tmp_path).train) == 6


def test_damaged_records_say_so(prepared, tmp_path):
    name = prepared("tested")
    for path in tmp_path.rglob("*train.array_record*"):
        path.unlink()
    with pytest.raises(InputError, match="cannot be read; delete that folder and prepare"):
        data.load(name, data_dir=tmp_path)


def test_records_in_tensorflows_own_format_say_what_to_do(prepared, tmp_path):
    name = prepared("tested")
    for path in list(tmp_path.rglob("*array_record*")):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    path = next(tmp_path.rglob("dataset_info.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match=r"only as tfrecord.*another folder by: .*data.prepare"):
        data.load(name, data_dir=tmp_path)


def test_not_prepared_gives_the_one_command(tmp_path):
    command = f"python -m fdjax.data.prepare mnist --data_dir {tmp_path}"
    with pytest.raises(InputError, match=f"'mnist' is not prepared in .*&& {command}"):
        data.load("mnist", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_command_quotes_what_a_shell_would_split(tmp_path):
    assert records.preparing_command("mnist", tmp_path / "my data").endswith("my data'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnsit", "no data set 'mnsit'; did you mean mnist.*npz file.*folder of class folders"),
        ("qwxyz", "no data set 'qwxyz'; give 'digits'"),
        ("no/such/folder", "there is no data set"),
        ("", "must not be empty"),
        ("cmaterdb/xx", "config, one of bangla, devanagari, telugu"),
        ("mnist:9.9.9", "mend its version"),
        ("fdjax_test_words", "not for image classification"),
        ("fdjax_test_any_size", "differ in size"),
    ],
)
def test_unknown_or_unfit_names(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        data.load(name, data_dir=tmp_path)


def test_prepare_command(tmp_path, monkeypatch, capsys):
    arguments = ["fdjax_test_shapes/alone", "--data_dir", str(tmp_path)]
    found = {"tensorflow": None}
    monkeypatch.setattr(prepare.importlib.util, "find_spec", found.get)
    assert prepare.main(arguments) == 1
    assert "pip install 'fdjax[prepare]'" in capsys.readouterr().err
    # This data set happens not to use TensorFlow, so a claim is enough.
    found["tensorflow"] = True
    assert prepare.main([*arguments, "--manual_dir", str(tmp_path / "none")]) == 1
    assert "--manual_dir: there is no folder" in capsys.readouterr().err
    assert prepare.main(arguments) == 0
    assert "is prepared in" in capsys.readouterr().out
    assert len(data.load(arguments[0], data_dir=tmp_path).train) == 16
    # What is prepared needs TensorFlow no more.
    found["tensorflow"] = None
    assert prepare.main(arguments) == 0


def test_prepare_names_a_file_that_is_not_the_one_expected(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", {"tensorflow": True}.get)
    for part in ("training", "testing"):
        (tmp_path / f"{part}-images.npz").write_text("words")
    arguments = ["cmaterdb/telugu", "--data_dir", f"{tmp_path}/to", "--manual_dir", str(tmp_path)]
    assert prepare.main(arguments) == 1
    said = capsys.readouterr().err
    assert "--manual_dir" in said
    assert "training-images.npz, has wrong checksum" in said
    assert not list((tmp_path / "to").rglob("dataset_info.json"))


def test_prepare_refuses_unknown_names(tmp_path, capsys):
    assert prepare.main(["mnsit", "--data_dir", str(tmp_path)]) == 1
    assert "did you mean mnist" in capsys.readouterr().err
