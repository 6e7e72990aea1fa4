"""The command that registers a teacher of another framework, and what it refuses."""

import numpy as np
import pytest
from test_faculty import black_box, images, refused

from experiments import register_teacher
from fdjax import data, faculty


@pytest.fixture
def place(tmp_path):
    np.savez(tmp_path / "net.npz", **black_box(), images=images(), source_accuracy=0.5)
    return tmp_path


def run(place, **flags):
    known = {"workdir": str(place / "job"), "root": str(place / "faculty")}
    config = register_teacher.Config(**known | flags)
    return register_teacher.run(config)["teacher"], faculty.cards(config.root)[-1]


def test_outputs_of_images_become_a_teacher(place):
    given = {"outputs": str(place / "net.npz"), "num_classes": 3}
    row, card = run(place, **given)
    assert row["teacher"] == card.name == "net" and card.class_names == ("0", "1", "2")
    assert card.source_accuracy == 0.5 and card.num_parameters is None
    said = faculty.observe(place / "faculty", "net", images())
    np.testing.assert_array_equal(said.probabilities, black_box()["probabilities"])
    with refused("has a teacher 'net' already"):
        run(place, **given)
    names = {"class_names": np.array(["x", "y", "z"]), "num_parameters": 7}
    digest = data.digest(images(seed=2))
    np.savez(place / "net.npz", **black_box(), **names, images_digest=digest)
    _, card = run(place, outputs=str(place / "net.npz"), replace=True, source_accuracy=0.25)
    assert card.class_names == ("x", "y", "z") and card.num_parameters == 7
    assert card.source_accuracy == 0.25
    with refused("known only by its outputs on other images"):
        faculty.observe(place / "faculty", "net", images())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give exactly one of --onnx, --safetensors, --outputs"),
        ({"outputs": "net.npz", "onnx": "net.npz"}, "give exactly one of"),
        ({"outputs": "none.npz"}, "--outputs: there is no file .*none.npz"),
        (
            {"outputs": "net.npz", "architecture": "resnet8"},
            "--architecture goes with --safetensors",
        ),
        ({"outputs": "net.npz", "features": "x"}, "--features goes with --onnx"),
        ({"safetensors": "net.npz"}, "--safetensors needs --architecture, one of resnet8"),
        ({"outputs": "net.npz"}, "name the teacher's labels by --class_names, or count them"),
        ({"outputs": "net.npz", "num_classes": 4}, r"must have shape \(any, 4\)"),
        ({"outputs": "net.npz", "class_names": "none"}, "--class_names: there is no file none"),
        ({"outputs": "net.npz", "class_names": "net.npz"}, "is no text file"),
        ({"outputs": "net.npz", "num_classes": 3, "name": "../net"}, "`name` must be 1 to 100"),
        ({"outputs": "net.npz", "num_classes": 3, "licence": "a\x1bb"}, "`licence` must be a name"),
        ({"onnx": "net.npz", "num_classes": 3, "image_shape": (8, 8)}, "--image_shape must be"),
        ({"onnx": "net.npz", "num_classes": 3, "mean": (1.0, 2.0)}, "--mean must give one number"),
        ({"onnx": "net.npz", "num_classes": 3, "std": (0.0,)}, "--std must lie in"),
    ],
)
def test_what_does_not_fit_is_refused(place, flags, message):
    files = ("outputs", "onnx", "safetensors")
    flags = {k: str(place / v) if k in files else v for k, v in flags.items()}
    if flags.get("class_names") == "net.npz":
        flags["class_names"] = str(place / "net.npz")
    with refused(message):
        run(place, **flags)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must tell of which images it is"),
        ({"images": images(), "images_digest": "0" * 64}, "must tell of which images it is"),
        ({"images_digest": "0"}, "`images_digest` of .*net.npz must be 64 hexadecimal digits"),
        ({"images": images(9)}, "probabilities of 10 examples, but images of shape"),
        ({"images": images(), "num_parameters": [1, 2]}, "`num_parameters` of .* must be a number"),
        ({"images": images(), "class_names": ["a", "b", "c\x1b"]}, "holds the control character"),
        ({"images": images(), "class_names": [[1]]}, "`class_names` of .* must be a list of texts"),
    ],
)
def test_an_outputs_file_that_does_not_fit_is_refused(place, arrays, message):
    np.savez(place / "net.npz", **black_box(), **arrays)
    with refused(message):
        run(place, outputs=str(place / "net.npz"), num_classes=3)


def test_a_file_whose_name_is_no_teachers_needs_a_name(place):
    (place / "net.npz").rename(place / "my net.npz")
    with refused("'my net' cannot be that of a teacher; give one by --name"):
        run(place, outputs=str(place / "my net.npz"), num_classes=3)
    assert run(place, outputs=str(place / "my net.npz"), num_classes=3, name="my-net")[0]
