"""Teachers of other frameworks answer as NumPy says they must, are scored and distilled from."""

import dataclasses

import foreign_files
import numpy as np
import pytest
import toy_faculty
from scipy.special import log_softmax, softmax

from experiments import distil_student, register_teacher, score_faculty
from fdjax import data, faculty
from fdjax.checks import InputError
from fdjax.models import state_dicts

pytest.importorskip("safetensors", reason="the extra `safetensors` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
from safetensors.numpy import save_file

SHAPE = (8, 8, 3)
PREPROCESSING = data.Preprocessing(*SHAPE, (0.5, 0.4, 0.3), (0.25, 0.3, 0.2))
RESNET8 = {"widths": (16, 16, 32, 64), "blocks": (1, 1, 1)}


def card(name="foreign", **changes):
    known = {
        "architecture": "resnet8",
        "class_names": ("a", "b", "c"),
        "source_task": "elsewhere",
        "preprocessing": PREPROCESSING,
    }
    return faculty.Card(name=name, **known | changes)


def pixels(number=5):
    return np.random.default_rng(0).integers(0, 256, (number, *SHAPE), dtype=np.uint8)


def as_read(images):
    """What the networks read, by another hand than `data.preprocess`."""
    return (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.25, 0.3, 0.2])


def channels_first(images):
    return np.ascontiguousarray(as_read(images).transpose(0, 3, 1, 2))


@pytest.fixture
def root(tmp_path):
    return faculty.create(tmp_path / "faculty")


def refused(message):
    return pytest.raises(InputError, match=message)


NETWORKS = {
    "resnet8": lambda images: foreign_files.resnet(images, **RESNET8),
    "resnet8 of option A": lambda images: foreign_files.resnet(
        images, **RESNET8, shortcut="A", head="linear"
    ),
    "resnet14": lambda images: foreign_files.resnet(
        images, widths=(16, 16, 32, 64), blocks=(2, 2, 2)
    ),
    "resnet8x4": lambda images: foreign_files.resnet(
        images, widths=(32, 64, 128, 256), blocks=(1, 1, 1)
    ),
    "resnet50": lambda images: foreign_files.resnet(
        images,
        widths=(64, 64, 128, 256, 512),
        blocks=(3, 4, 6, 3),
        shortcut="shortcut",
        head="linear",
        bottleneck=True,
    ),
    "wrn_16_2": lambda images: foreign_files.wide_resnet(images, 2, 2),
    "vgg8": lambda images: foreign_files.vgg(images, 1),
    "vgg13": lambda images: foreign_files.vgg(images, 2),
}
QUICK = ("resnet8", "resnet8 of option A")


@pytest.mark.parametrize(
    "network", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_a_published_network_answers_as_it_did(root, tmp_path, network):
    arrays, logits = NETWORKS[network](channels_first(pixels()))
    path = tmp_path / "net.safetensors"
    save_file({f"module.{name}": array for name, array in arrays.items()}, path)
    name = network.split()[0]
    made = faculty.register_state_dict(root, card(architecture=name), path)
    said = faculty.observe(root, "foreign", pixels())
    # Float32 through up to 50 layers against float64.
    np.testing.assert_allclose(np.log(said.probabilities), log_softmax(logits, axis=1), atol=1e-4)
    head = list(arrays)[-1].split(".")[0]
    np.testing.assert_array_equal(said.class_vectors, arrays[f"{head}.weight"])
    assert made.num_parameters == said.num_parameters
    # It is one of our own from now on.
    assert faculty.load(root, "foreign")[0] == made


def test_weights_of_another_network_are_named(root, tmp_path):
    path = tmp_path / "net.safetensors"
    arrays, _ = foreign_files.resnet(channels_first(pixels(1)), **RESNET8)
    register = faculty.register_state_dict
    save_file(arrays, path)
    with refused("stage_0_block_1.* has shape nothing, but resnet14"):
        register(root, card(architecture="resnet14"), path)
    with refused("last layer has 3 rows, but the card names 2 classes"):
        register(root, card(class_names=("a", "b")), path)
    with refused("net.safetensors: .* an array 'layer1.* which no published wrn_16_1 has"):
        register(root, card(architecture="wrn_16_1"), path)
    with refused("`architecture of a state dict` must be one of resnet8"):
        register(root, card(architecture="mlp"), path)
    save_file(arrays | {"fc.weight": np.ones((3, 64), np.int32)}, path)
    with refused("'fc.weight' of the state dict must be fractions, got int32"):
        register(root, card(), path)
    save_file({"conv1.weight": np.ones(3, np.float32)}, path)
    with refused("have no last layer"):
        register(root, card(), path)
    path.write_bytes(path.read_bytes()[:-3])
    with refused("net.safetensors cannot be read as safetensors"):
        register(root, card(), path)
    with refused("there is no such file"):
        register(root, card(), tmp_path / "none")
    assert faculty.cards(root) == ()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_an_onnx_teacher_answers_as_it_must(root, tmp_path, layout):
    content, weights = foreign_files.mlp(SHAPE, layout=layout)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    made = faculty.register_onnx(root, card(options={"features": "features"}), path)
    said = faculty.observe(root, "foreign", pixels(), batch_size=2)
    features, logits = foreign_files.mlp_answers(weights, as_read(pixels()), layout)
    np.testing.assert_allclose(said.probabilities, softmax(logits, axis=1), atol=1e-5)
    np.testing.assert_allclose(said.features, features, atol=1e-4)
    assert said.class_vectors is None
    assert made.options == {
        "layout": layout, "output": "logits", "says": "logits", "features": "features"
    }  # fmt: skip
    assert made.architecture == "onnx"
    assert made.num_parameters == sum(array.size for array in weights.values())
    # Kept like any other, also in half the space, and mapped.
    again = faculty.observe(root, "foreign", pixels(), batch_size=2)
    np.testing.assert_array_equal(again.probabilities, said.probabilities)
    half = faculty.observe(root, "foreign", pixels(), keep="float16")
    np.testing.assert_allclose(half.probabilities, said.probabilities, atol=1e-3)
    with refused("'foreign' is an ONNX file: it can be observed, but its weights cannot be loaded"):
        faculty.load(root, "foreign")


def test_an_onnx_teacher_that_takes_one_image_at_a_time_or_says_probabilities(root, tmp_path):
    path = tmp_path / "net.onnx"
    content, weights = foreign_files.mlp(SHAPE, batch=1)
    path.write_bytes(content)
    faculty.register_onnx(root, card(), path)
    _, logits = foreign_files.mlp_answers(weights, as_read(pixels()))
    said = faculty.observe(root, "foreign", pixels())
    np.testing.assert_allclose(said.probabilities, softmax(logits, axis=1), atol=1e-5)
    assert said.features is None
    with refused("of teacher 'foreign' says no probabilities; give the option `says` as logits"):
        faculty.register_onnx(root, card(options={"says": "probabilities"}), path, replace=True)


def test_what_an_onnx_file_may_not_do(root, tmp_path):
    from onnx import TensorProto, helper

    path = tmp_path / "net.onnx"
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 4 * 8 * 8 * 3 * 5)

    def register(content, **changes):
        path.write_bytes(content)
        return faculty.register_onnx(root, card(**changes), path)

    outside = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[192, 5])
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../secret")
    with refused("keeps weights in another file"):
        register(foreign_files.mlp(SHAPE, tensors=[outside])[0])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.evil\x1b", 1)]
    with refused(r"has operators of 'com.evil\\x1b', which are outside the standard"):
        register(foreign_files.mlp(SHAPE, opsets=opsets)[0])
    for content in (b"", b"words", b"\x08\x08"):
        with refused("is no ONNX file|is an empty ONNX file"):
            register(content)
    content = foreign_files.mlp(SHAPE)[0]
    with refused("does not load"):
        register(foreign_files.mlp(SHAPE, tensors=[])[0])
    with refused(r"must have shape \(2, 2\), got \(2, 3\)"):
        register(content, class_names=("a", "b"))
    with refused("reads images of .3, 8, 8., but `preprocessing` gives 9 x 8 pixels"):
        grey = dataclasses.replace(PREPROCESSING, height=9)
        register(content, preprocessing=grey)
    with refused("`output of the ONNX file of teacher 'foreign'` must be one of logits, features"):
        register(content, options={"features": "hidden"})
    with refused("`layout of .*` must be one of channels_first"):
        register(content, options={"layout": "sideways"})
    with refused("must be one of features, layout, output, says; got 'speed'"):
        register(content, options={"speed": 3})
    with refused("has no `preprocessing`"):
        register(content, preprocessing=None)
    assert faculty.cards(root) == ()
    register(content)
    (root / "teachers" / "foreign" / "model.onnx").write_bytes(foreign_files.mlp(SHAPE, batch=1)[0])
    with refused("model.onnx is not the file of which the card of teacher 'foreign' tells"):
        faculty.observe(root, "foreign", pixels())


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Flags of a task and its faculty, with two more teachers that came from files."""
    folder = tmp_path_factory.mktemp("world")
    flags = toy_faculty.make(folder)
    (folder / "exported.onnx").write_bytes(foreign_files.mlp(SHAPE)[0])
    arrays, _ = foreign_files.resnet(channels_first(pixels(1)), **RESNET8)
    save_file(arrays, folder / "published.safetensors")
    (folder / "names.txt").write_text("one\ntwo words\n\nthree\n")
    common = {
        "root": flags["root"],
        "workdir": str(folder / "register"),
        "class_names": str(folder / "names.txt"),
        "image_shape": SHAPE,
        "licence": "MIT",
    }
    exported = {"onnx": str(folder / "exported.onnx"), "features": "features"}
    published = {"safetensors": str(folder / "published.safetensors"), "architecture": "resnet8"}
    for given in (exported, published):
        register_teacher.run(register_teacher.Config(**common, **given))
    return flags


FOREIGN = ("exported", "published")


def test_foreign_teachers_are_scored(registered, tmp_path):
    cards = faculty.cards(registered["root"])[2:]
    assert tuple(one.name for one in cards) == FOREIGN
    assert all(one.class_names == ("one", "two words", "three") for one in cards)
    assert all(one.preprocessing.mean == (0.5,) * 3 and one.licence == "MIT" for one in cards)
    config = score_faculty.Config(
        **{key: registered[key] for key in ("root", "dataset", "shots")},
        workdir=str(tmp_path),
        scores=("leep",),
        resamples=0,
    )
    rows = {row["teacher"]: row for row in score_faculty.run(config)["ranking"]}
    assert np.isfinite([rows[name]["leep"] for name in FOREIGN]).all()


@pytest.mark.parametrize("name", ["exported", pytest.param("published", marks=pytest.mark.slow)])
def test_a_student_learns_from_a_foreign_teacher(registered, tmp_path, name):
    changes = {"workdir": str(tmp_path), "teacher": name, "objective": "uld", "steps": 3}
    results = distil_student.run(distil_student.Config(**registered | changes))
    assert results["teacher"] == name and np.isfinite(results["history"][-1]["loss"])


def test_an_onnx_file_cannot_be_run_inside_a_step(registered, tmp_path):
    changes = {
        "workdir": str(tmp_path),
        "teacher": "exported",
        "objective": "uld",
        "augmentation": "shift",
    }
    with refused("is an ONNX file: it can be observed, but its weights cannot be loaded"):
        distil_student.run(distil_student.Config(**registered | changes))


def test_the_published_networks_that_can_be_read():
    found = state_dicts.architectures()
    assert {"resnet8", "resnet110", "resnet8x4", "resnet50", "wrn_40_2", "vgg13"} <= set(found)
    assert not {"mlp", "convnet", "resnet"} & set(found)
