"""Every loader meets files that nobody meant it to read: it reads or refuses, and writes no others.

Each case turns something drawn by hypothesis into the file of a loader and calls it. All that it
may raise is the package's own error; all that it may write lies in the folder it was given.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from test_faculty import black_box, card, images, variables
from test_killed import REPOSITORY

from experiments import _grid, _ledger, _outputs, register_teacher
from fdjax import checkpoints, data, faculty
from fdjax.checks import InputError
from fdjax.data import npz
from fdjax.faculty import files, foreign, kept
from fdjax.models import state_dicts

# Hostile values: paths, colours of a terminal, numbers without end, nests without bottom.
TEXTS = st.sampled_from(
    ["../../x", "/etc/passwd", "a\x1b[31mb", "a\nb", "\ud800", "", "e" * 5000, "even", "C:\\x"]
) | st.text(max_size=8)
NUMBERS = st.sampled_from(
    [10**400, -(10**30), 2**63, 1e308, float("nan"), float("inf"), -1, 0, True, 1e-300]
) | st.integers(-5, 5)
PLAIN = TEXTS | NUMBERS | st.none()
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw, whole):
    """Bytes of a sound file after a few changes, or bytes of no file at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=64))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(0, 40))
        kind = draw(st.integers(0, 4))
        if kind == 0 and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        elif kind == 3:
            content[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        else:
            del content[place:]
    return bytes(content)


@st.composite
def altered(draw, values):
    """JSON in which some value is another, or a key is lost, or all of it is something else."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return json.dumps(draw(VALUES))
    if kind == 1:
        return "[" * draw(st.integers(1, 100_000)) + json.dumps(values)
    values = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 2))):
        branch = values
        while True:
            keys = list(branch) if isinstance(branch, dict) else list(range(len(branch)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(branch[key], dict | list) and draw(st.booleans()):
                branch = branch[key]
                continue
            if draw(st.integers(0, 5)) == 0:
                del branch[key]
            else:
                branch[key] = draw(VALUES)
            break
    text = json.dumps(values)
    return draw(mutated(text.encode())) if draw(st.integers(0, 4)) == 0 else text


DTYPES = ["f4", "f8", "f2", "i8", "u1", "i4", "?", "c8", "U3", "S2", "M8[s]", "O", "V4", ">f4", "g"]
SHAPES = st.lists(st.integers(0, 4), max_size=3) | st.sampled_from([(10, 3), (10,), (3,), (10, 2)])


def member(descr, shape, payload, fortran=False):
    """An array file whose header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    padded = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + payload


@st.composite
def archives(draw, sound):
    """An npz file: the sound one with some arrays replaced, or with headers that lie."""
    buffer = io.BytesIO()
    packing = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", packing) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, array in sound.items():
            kind = draw(st.integers(0, 7))
            if kind == 0:
                continue
            if kind == 1:
                name = draw(st.sampled_from(["../../x", "/x", "probabilities", "a\x1b"]) | TEXTS)
                name = name.encode("utf-8", "replace").decode() or "x"
            if kind in (1, 2, 3):
                dtype = np.dtype(draw(st.sampled_from(DTYPES)))
                array = np.zeros(draw(SHAPES), dtype)
                if dtype.kind in "fiu" and draw(st.booleans()):
                    array = np.full(array.shape, draw(st.sampled_from([1, 0.5, 3])), dtype)
            if kind == 4:
                huge = st.sampled_from([(10**12,), (-1,), (2**62, 2**62), (10, 3), (1, 10**9, 0)])
                descr = draw(st.sampled_from(["<f4", "<U0", "|O", "<U2", "bad", "<f4" * 100]))
                content = member(descr, draw(huge), draw(st.binary(max_size=130)))
            else:
                written = io.BytesIO()
                np.lib.format.write_array(written, np.asarray(array), allow_pickle=True)
                content = written.getvalue()
            suffix = "" if draw(st.integers(0, 20)) == 0 else ".npy"
            archive.writestr(f"{name}{suffix}", content)
    whole = buffer.getvalue()
    return draw(mutated(whole)) if draw(st.integers(0, 3)) == 0 else whole


@pytest.fixture(scope="module")
def world():
    """A folder with one of everything, and beside it nothing."""
    outer = Path(tempfile.mkdtemp()).resolve()
    folder = outer / "world"
    root = faculty.create(folder / "faculty")
    faculty.register(root, card("even"), variables(0))
    apart = card("apart", preprocessing=None)
    faculty.register_outputs(root, apart, black_box(), data.digest(images()))
    faculty.observe(root, "even", images())
    task = data.synthetic(num_classes=3, height=4, width=4, train_per_class=4, test_per_class=2)
    arrays = {
        "train_images": task.train.images,
        "train_labels": task.train.labels,
        "test_images": task.test.images,
        "test_labels": task.test.labels,
        "class_names": np.array(task.class_names),
    }
    yield folder, arrays
    shutil.rmtree(outer)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def manifest(folder, _):
    path = folder / "faculty" / "manifest.json"
    whole = path.read_text()

    def load(text):
        put(path, text)
        try:
            faculty.cards(folder / "faculty")
            faculty.create(folder / "faculty")
        finally:
            put(path, whole)

    return altered(json.loads(whole)), load


def cards(folder, _):
    path = folder / "faculty" / "teachers" / "even" / "card.json"
    whole = path.read_text()

    def load(text):
        put(path, text)
        try:
            faculty.cards(folder / "faculty")
            faculty.load(folder / "faculty", "even")
        finally:
            put(path, whole)

    return altered(json.loads(whole)), load


def outputs(folder, _):
    """The card agrees with whatever the file holds, where that can be told."""
    root = folder / "faculty"
    path, told = root / "teachers" / "apart" / "outputs.npz", root / "teachers/apart/card.json"
    whole, whole_card = path.read_bytes(), told.read_text()

    def load(content):
        put(path, content)
        try:
            digest = files.digest(npz.read(path))
            put(told, json.dumps(json.loads(whole_card) | {"digest": digest}))
        except OSError:
            pass
        try:
            faculty.observe(root, "apart", images())
        finally:
            put(path, whole)
            put(told, whole_card)

    sound = black_box() | {"images_digest": np.array(data.digest(images()))}
    return archives(sound | {"features": np.ones((10, 2), np.float32)}), load


def about(folder, _):
    (place,) = (folder / "faculty").glob("outputs/*/even-*")
    whole = json.loads((place / "about.json").read_text())

    def load(text):
        put(place / "about.json", text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is made again
            faculty.observe(folder / "faculty", "even", images())

    return altered(whole), load


def kept_arrays(folder, _):
    (place,) = (folder / "faculty").glob("outputs/*/even-*")
    whole = (place / "probabilities.npy").read_bytes()

    def load(drawn):
        content, agrees = drawn
        put(place / "probabilities.npy", content)
        if agrees:
            told = json.loads((place / "about.json").read_text())
            told["files"]["probabilities"] = kept._sha256(place / "probabilities.npy")
            put(place / "about.json", json.dumps(told))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            faculty.observe(folder / "faculty", "even", images())

    lies = st.builds(
        member,
        st.sampled_from(["<f4", "|O", ">f8", "<U2"]),
        st.sampled_from([(10, 3), (10**12, 3), (3,), (-1, 3)]),
        st.binary(min_size=120, max_size=120),
    )
    return st.tuples(mutated(whole) | lies, st.booleans()), load


def given(folder, _):
    labels = {"labels": np.arange(10) % 3, "class_names": np.array(["a", "b", "c"])}
    teacher = black_box() | {
        "features": np.ones((10, 2)),
        "class_vectors": np.ones((3, 2)),
        "class_names": np.array(["x", "y", "z"]),
        "source_accuracy": np.array(0.5),
    }

    def load(drawn):
        for name, content in zip(("labels", "teacher"), drawn, strict=True):
            put(folder / "given" / f"{name}.npz", content)
        _outputs.read(str(folder / "given"))

    whole = io.BytesIO()
    np.savez(whole, **labels)
    sound = st.just(whole.getvalue())
    return st.tuples(sound | archives(labels), archives(teacher)), load


def foreign_outputs(folder, _):
    def load(content):
        put(folder / "net.npz", content)
        _outputs.of_images(folder / "net.npz")

    sound = black_box() | {"images": images(), "class_names": np.array(["x", "y", "z"])}
    return archives(sound), load


def data_set(folder, arrays):
    def load(content):
        put(folder / "set.npz", content)
        data.load(str(folder / "set.npz"))

    return archives(arrays), load


def records(folder, _):
    """Files that tensorflow-datasets has prepared: records, what describes them, decoded images."""
    data.load("digits", data_dir=folder)
    (described,) = folder.rglob("dataset_info.json")
    place = described.parent
    whole = {one: one.read_bytes() for one in place.iterdir()}
    (decoded,) = (one for one in whole if one.suffix == ".npz")

    def load(drawn):
        name, content = drawn
        put(name, content)
        if name != decoded:
            decoded.unlink(missing_ok=True)
        try:
            data.load("digits", data_dir=folder)
        finally:
            for one in place.iterdir():
                one.unlink()
            for one, before in whole.items():
                put(one, before)

    changes = [
        st.tuples(
            st.just(one),
            altered(json.loads(content)) if one.suffix == ".json" else mutated(content),
        )
        for one, content in sorted(whole.items())
    ]
    return st.one_of(*changes), load


def pictures(folder, _):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    sound = []
    for kind in ("png", "bmp", "gif", "jpeg", "tiff", "webp", "ppm"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        sound.append(buffer.getvalue())

    def load(content):
        for name in ("a", "b"):
            put(folder / "pictures" / name / "1.png", sound[0])
            put(folder / "pictures" / name / "2.png", sound[0])
        put(folder / "pictures" / "a" / "3.png", content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow tells of tags that it skips
            data.load(f"{folder / 'pictures'}/")

    return st.one_of([mutated(one) for one in sound]), load


def ledger(folder, _):
    path = folder / "runs.jsonl"
    job = _grid.Job("t", "o", "n", 0)
    lines = [{"flags": {"shots": 3}}, job._asdict() | {"value": 0.5}]

    def load(drawn):
        put(path, "\n".join(map(str, drawn)) + "\n")
        _ledger.Ledger(path, _grid.Job, {"shots": 3})

    first, second = (altered(line) for line in lines)
    return st.tuples(st.just(json.dumps(lines[0])) | first, second), load


def class_names(folder, _):
    path = folder / "names.txt"

    def load(content):
        put(path, content)
        names = register_teacher.names_of(register_teacher.Config(class_names=str(path)))
        card(class_names=names)

    return mutated(b"one\ntwo\ndrei\n") | st.binary(max_size=30), load


def checkpoint(folder, _):
    """Files of a checkpoint, whose checksums agree or do not."""
    path = folder / "checkpoint"
    checkpoints.save_tree(path, {"params": {"a": np.arange(6.0), "b": {"c": np.ones((2, 3))}}})
    sums = path / "checksums.json"
    whole = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    names = sorted(one for one in whole if one != sums)

    def load(drawn):
        name, content, agrees = drawn
        put(name, content)
        if agrees:
            put(sums, json.dumps(checkpoints._checksums(path)))
        try:
            checkpoints.load_tree(path)
        finally:
            for one, before in whole.items():
                put(one, before)

    changes = [st.tuples(st.just(name), mutated(whole[name]), st.booleans()) for name in names]
    told = st.tuples(st.just(sums), altered(json.loads(whole[sums])), st.just(False))
    return st.one_of(told, *changes), load


def safetensors(folder, _):
    save = pytest.importorskip("safetensors.numpy").save
    whole = save({"conv1.weight": np.ones((4, 3, 3, 3), np.float32), "fc.bias": np.ones(3, "f2")})
    path = folder / "net.safetensors"

    def load(content):
        put(path, content)
        state_dicts.variables_of("resnet8", foreign.read_safetensors(path))

    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    payload = whole[8 + int.from_bytes(whole[:8], "little") :]

    def framed(text):
        text = text if isinstance(text, bytes) else text.encode()
        return len(text).to_bytes(8, "little") + text + payload

    return mutated(whole) | altered(header).map(framed), load


def onnx(folder, _):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    import foreign_files

    path = folder / "net.onnx"
    whole = foreign_files.mlp((8, 8, 1))[0]

    def load(content):
        put(path, content)
        faculty.register_onnx(folder / "faculty", card("exported", options={}), path, replace=True)

    return mutated(whole), load


CASES = {
    manifest: 1500,
    cards: 2000,
    outputs: 1000,
    about: 500,
    kept_arrays: 500,
    given: 1000,
    foreign_outputs: 500,
    data_set: 1000,
    records: 400,
    pictures: 500,
    ledger: 500,
    class_names: 300,
    checkpoint: 300,
    safetensors: 700,
    onnx: 300,
}
"""Inputs of the slow test; the default takes one of thirty."""

watched = {"inside": "", "wrong": []}


def watch(event, arguments):
    """Notes what is written outside the folder."""
    inside = watched["inside"]
    if not inside:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = (isinstance(mode, str) and set(mode) & set("wxa+")) or (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        paths = [path] if writes else []
    elif event in ("os.rename", "os.link", "os.symlink"):
        paths = list(arguments[:2])
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod"):
        paths = [arguments[0]]
        if arguments[-1] is not None and arguments[-1] > 0 and event in ("os.remove", "os.rmdir"):
            # Relative to a folder that is open, as shutil.rmtree does.
            paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), arguments[0])]
    else:
        return
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            allowed = (inside, os.environ.get("JAX_COMPILATION_CACHE_DIR", inside), "/dev/")
            if not place.startswith(allowed):
                watched["wrong"].append((event, place))


sys.addaudithook(watch)


def fuzz(case, world, number):
    folder, arrays = world
    strategy, load = case(folder, arrays)
    count = 0

    @hypothesis.settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(strategy)
    def check(drawn):
        nonlocal count
        count += 1
        watched.update(inside=str(folder), wrong=[])
        try:
            load(drawn)
        except InputError:
            pass
        finally:
            watched["inside"] = ""
        assert watched["wrong"] == []

    check()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["world"]
    return count


# Of a task in tensorstore that nobody waits for once orbax has given up on a damaged file.
LEFT_ALONE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LEFT_ALONE
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_loader_reads_or_refuses(case, world):
    assert fuzz(case, world, -(-CASES[case] // 30)) > 0


@LEFT_ALONE
@pytest.mark.slow
def test_ten_thousand_inputs_are_read_or_refused(world):
    counts = {case.__name__: fuzz(case, world, number) for case, number in CASES.items()}
    print(counts)
    assert sum(counts.values()) >= 10_000, counts


def test_lies_about_sizes_cost_no_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("probabilities.npy", "w", force_zip64=True) as file,
    ):
        file.write(member("<f4", (2**26 + 2**18,), b""))
        for _ in range(257):
            file.write(bytes(2**20))
    assert path.stat().st_size < 2**21
    with pytest.raises(OSError, match="bytes would unpack to 269484160; save it with"):
        npz.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", member("<f4", (10**15,), b"1234"))
    with pytest.raises(OSError, match="claims the shape"):
        npz.read(path)


# Flags

DRIVER = """
import importlib, json, sys, traceback
import absl.app
from absl import flags

module, base, lists = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.stdin.read())
found = {}
absl.app.run = lambda command: found.update(command=command)
experiment = importlib.import_module(module)
from experiments import _run
_run.main(experiment.run, experiment.Config)
odd = []
for arguments in lists:
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        left = flags.FLAGS([module, *base, *arguments])
    except flags.Error:
        continue  # one line and the exit code 1, as absl has it
    try:
        code = found["command"](left)
        if code not in (0, 2):
            odd.append((arguments, code))
    except BaseException:
        odd.append((arguments, traceback.format_exc()[-1500:]))
print(json.dumps(odd))
"""

WORDS = [
    *("", "0", "-1", "1", "2", "nan", "inf", "1e400", "99999999999999999999999", "0.5", "true"),
    *(
        "../../x",
        "\x1b[31m",
        "a,b",
        ",",
        "a:b=c",
        "a:b",
        ":",
        "=",
        "@",
        "x@1",
        "transport:weight=x",
    ),
    *("float16", "7", "none", "digits", "/dev/null", "é", "leep,leep", "x:y+z", "best", "mlp"),
]


def names_of(module):
    import importlib

    experiment = importlib.import_module(f"experiments.{module}")
    return sorted(experiment.Config.__dataclass_fields__)


def misuse(module, tmp_path, number):
    """What went wrong when a command met flags at random."""
    drawn = np.random.default_rng(0)
    names = [name for name in names_of(module) if name not in ("workdir", "root", "outputs")]
    lists = [
        [f"--{drawn.choice(names)}={drawn.choice(WORDS)}" for _ in range(int(drawn.integers(1, 4)))]
        for _ in range(number)
    ]
    # No faculty and no data: whatever the flags say, nothing can be computed.
    base = [f"--workdir={tmp_path / 'job'}", f"--root={tmp_path / 'none'}"]
    base += ["--datasets=none.npz" if module == "build_faculty" else "--dataset=none.npz"]
    base = base[: 2 if module == "register_teacher" else 3]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, f"experiments.{module}", json.dumps(base)],
        input=json.dumps(lists),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\x1b" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


COMMANDS = {
    "distil_student": 100,
    "score_faculty": 300,
    "compare_scores": 300,
    "compare_objectives": 300,
    "build_faculty": 300,
    "register_teacher": 300,
    "faculty_distillation": 300,
}


@pytest.mark.parametrize(
    "module",
    [m if m == "distil_student" else pytest.param(m, marks=pytest.mark.slow) for m in COMMANDS],
)
def test_flags_at_random_are_refused_in_a_sentence(module, tmp_path):
    odd = misuse(module, tmp_path, COMMANDS[module])
    assert odd == [], odd[0]
