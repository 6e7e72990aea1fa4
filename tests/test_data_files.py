"""The user's own files: what is read, and the one sentence for everything that is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fdjax import data
from fdjax.checks import InputError

TASK = data.synthetic(num_classes=3, train_per_class=5, test_per_class=2)


def arrays(**changes):
    """The arrays of a good file, with changes; None leaves an array out."""
    good = {
        "train_images": TASK.train.images,
        "train_labels": TASK.train.labels,
        "test_images": TASK.test.images,
        "test_labels": TASK.test.labels,
        "class_names": np.asarray(TASK.class_names),
    }
    return {name: array for name, array in (good | changes).items() if array is not None}


@pytest.fixture
def saved(tmp_path):
    def save(**changes):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays(**changes))
        return str(path)

    return save


@pytest.fixture
def folder(tmp_path):
    """Writes images, given as {"class/file.png": array}, and returns their folder."""

    def write(images):
        root = tmp_path / "pictures"
        for name, pixels in images.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        return root

    return write


def grey(value, size=(4, 5)):
    return np.full(size, value, np.uint8)


def test_npz_comes_back_whole(saved):
    task = data.load(saved(class_groups=np.zeros(3)))
    assert task.name == "mine"
    assert task.digest == TASK.digest


def test_npz_is_looked_for_in_the_data_dir_too(saved):
    path = Path(saved())
    found = data.load(path.name, data_dir=path.parent)
    assert found.digest == TASK.digest
    with pytest.raises(InputError, match=r"elsewhere\.npz"):
        data.load("elsewhere.npz", data_dir=path.parent)


def test_npz_grey_images_get_a_channel_and_labels_become_int32(saved):
    task = data.load(
        saved(
            train_images=TASK.train.images[..., 0],
            test_images=TASK.test.images[..., 0],
            train_labels=TASK.train.labels.astype(np.uint8),
        )
    )
    assert task.digest == TASK.digest


def test_npz_may_hold_floats_and_unlabelled_images(saved):
    floats = TASK.train.images / np.float32(255)
    labels = np.where(np.arange(15) < 9, TASK.train.labels, -1)
    task = data.load(saved(train_images=floats, test_images=floats[:6], train_labels=labels))
    assert task.train.images.dtype == np.float32
    assert (task.train.labels[9:] == -1).all()


NAN = np.full(TASK.train.images.shape, np.nan, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "test_labels is missing; an .npz must hold train_images"),
        ({"train_images": TASK.train.images * 1.0}, "train_images must be uint8 .* got float64"),
        ({"train_images": NAN}, "train_images` must be finite"),
        ({"train_images": np.zeros((15, 64), np.uint8)}, r"train_images must have .* \(15, 64\)"),
        ({"test_images": TASK.test.images[:0]}, "test_images must have the axes .* none .* empty"),
        ({"test_images": TASK.test.images[:, 1:]}, "are 8 x 8 x 1, but test_images are 7 x 8 x 1"),
        ({"test_images": TASK.test.images / np.float32(255)}, "save both in one type"),
        ({"train_labels": TASK.train.labels[1:]}, "has 15 images, but train_labels has 14 labels"),
        ({"train_labels": TASK.train.labels * 1.0}, "train_labels must be one whole number"),
        ({"train_labels": np.eye(15, dtype=int)}, "train_labels must be one whole number"),
        ({"test_labels": TASK.test.labels + 1}, r"test_labels must lie in \[0, 2\].*got 3 at"),
        ({"test_labels": TASK.test.labels - 1}, r"test_labels must lie in \[0, 2\].*got -1 at"),
        ({"train_labels": TASK.train.labels - 2}, r"lie in \[-1, 2\].*got -2 at position 0"),
        ({"class_names": np.arange(3)}, "class_names must be a list of text"),
        ({"class_names": np.array(["a", "b", "a"])}, "class_names has 'a' more than once"),
        ({"class_names": np.array(["a", "b", None])}, "class_names cannot be read without pickle"),
    ],
)
def test_npz_faults_name_file_array_and_mend(saved, changes, message):
    with pytest.raises(InputError, match=f"mine.npz.*{message}"):
        data.load(saved(**changes))


def test_npz_missing_broken_or_of_another_kind(saved, tmp_path):
    with pytest.raises(InputError, match=r"none.npz: there is no such file"):
        data.load(str(tmp_path / "none.npz"))
    path = saved()
    with open(path, "rb") as file:
        whole = file.read()
    for broken in (whole[: len(whole) // 2], b"", b"words", whole[:300] + b"x" + whole[301:]):
        with open(path, "wb") as file:
            file.write(broken)
        with pytest.raises(InputError, match=r"mine.npz is not a whole .npz file"):
            data.load(path)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match=r"is not a whole .npz file"):
        data.load(path)


def test_folder_with_train_and_test(folder):
    root = folder(
        {
            "train/dog/b.png": grey(1),
            "train/dog/a.png": grey(2),
            "train/cat/a.PNG": grey(3),
            "test/dog/a.png": grey(4),
        }
    )
    (root / "train/dog/notes.txt").write_text("left alone")
    task = data.load(str(root))
    assert (task.name, task.class_names) == ("pictures", ("cat", "dog"))
    assert task.train.images.shape == (3, 4, 5, 1)
    assert task.train.images[:, 0, 0, 0].tolist() == [3, 2, 1]
    assert task.train.labels.tolist() == [0, 1, 1]
    assert (task.test.images == 4).all()
    assert task.test.labels.tolist() == [1]


def test_folder_without_parts_is_split_the_same_way_each_time(folder):
    root = folder({f"{name}/{i}.png": grey(i) for name in "ab" for i in range(10)})
    task, again = data.load(str(root)), data.load(f"{root}/")
    assert (len(task.train), len(task.test)) == (16, 4)
    assert np.bincount(task.test.labels).tolist() == [2, 2]
    assert task.digest == again.digest


def test_folder_relative_to_the_working_folder(folder, monkeypatch):
    root = folder({"a/1.png": grey(1), "a/2.png": grey(2), "b/1.png": grey(1), "b/2.png": grey(2)})
    monkeypatch.chdir(root.parent)
    for name in ("pictures", "./pictures", "pictures/"):
        assert data.load(name).name == "pictures"


def test_folder_with_one_picture_in_colour_is_in_colour(folder):
    colour = np.zeros((4, 5, 4), np.uint8)
    colour[...] = (10, 20, 30, 255)
    root = folder({"train/a/1.png": grey(7), "train/b/1.png": colour, "test/a/1.png": grey(9)})
    images = data.load(str(root)).train.images
    assert images[0, 0, 0].tolist() == [7, 7, 7]
    assert images[1, 0, 0].tolist() == [10, 20, 30]


def test_folder_one_bit_pictures_are_black_and_white(folder):
    bits = np.array([[True, False], [False, True]])
    root = folder({"train/a/1.png": bits, "test/a/1.png": bits})
    assert data.load(str(root)).train.images[0, 0, :, 0].tolist() == [255, 0]


def test_folder_faults_name_the_file(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        data.load(str(tmp_path / "nowhere"))
    root = folder({"a/1.png": grey(1), "a/2.png": grey(2), "b/1.png": grey(1, (6, 5))})
    with pytest.raises(InputError, match=r"a/1.png is 4 x 5 and .*b/1.png is 6 x 5"):
        data.load(str(root))
    (root / "b/1.png").write_bytes((root / "a/1.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"b/1.png cannot be read as an image"):
        data.load(str(root))
    (root / "b/1.png").write_text("words")
    with pytest.raises(InputError, match=r"b/1.png cannot be read as an image"):
        data.load(str(root))
    Image.fromarray(np.full((4, 5), 1000, np.uint16)).save(root / "b/1.png")
    with pytest.raises(InputError, match=r"b/1.png has pixels of .* 8 bits a channel"):
        data.load(str(root))
    (root / "b/1.png").unlink()
    with pytest.raises(InputError, match=r"pictures/b has no images"):
        data.load(str(root))


def test_folder_faults_of_the_tree(folder, tmp_path):
    root = folder({"train/a/1.png": grey(1)})
    with pytest.raises(InputError, match=r"has train/ but not the other"):
        data.load(str(root))
    folder({"test/b/1.png": grey(1)})
    with pytest.raises(InputError, match=r"test has the class 'b', which .*train has not"):
        data.load(str(root))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no class folders"):
        data.load(str(tmp_path / "empty"))
