"""Runs killed by SIGKILL at random moments end, once repeated, as if nothing had happened."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_faculty
from test_experiments import write_npz

from fdjax import data, faculty

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parent.parent
KILLS = 6
"""Of each of the four kinds of run."""

OBSERVE = """
import sys
import numpy as np
from fdjax import faculty
folder, root = sys.argv[1:]
faculty.cards(root)
open(f"{folder}/flags.txt", "w").close()
images = np.random.default_rng(0).integers(0, 256, (4000, 4, 4, 1), dtype=np.uint8)
faculty.observe_all(root, images, batch_size=8)
faculty.observe_all(root, images, batch_size=8, keep="float16")
"""


class Place:
    """A folder in which a command is run until it ends, and how it is run."""

    def __init__(self, folder, cache, command, before=None):
        self.folder, self.command = folder, command
        folder.mkdir()
        if before is not None:
            before(folder)
        self.environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self):
        """The process, once it is at work."""
        marker = self.folder / "flags.txt"
        marker.unlink(missing_ok=True)
        command = [part.replace("FOLDER", str(self.folder)) for part in self.command]
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 300
        while not marker.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process

    def run(self):
        """Runs to the end; seconds of work."""
        process = self.start()
        began = time.monotonic()
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told.decode()
        return time.monotonic() - began

    def kill(self, delay):
        """Kills after some seconds of work; whether it was still at work then."""
        process = self.start()
        try:
            _, told = process.communicate(timeout=delay)
            assert process.returncode == 0, told.decode()
            return False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return process.returncode == -signal.SIGKILL


def survive(tmp_path, command, found, *, before=None, seed=0):
    """Compares what is `found` after kills with what it is without.

    Args:
        tmp_path: An empty folder.
        command: Of Python; FOLDER stands for the folder of the run.
        found: From that folder to what the run is for.
        before: Makes what the run needs in its folder.
        seed: Of the moments.
    """
    cache, moments = tmp_path / "compiled", random.Random(seed)
    whole = Place(tmp_path / "whole", cache, command, before)
    whole.run()  # compiles, too
    expected = found(whole.folder)
    again = Place(tmp_path / "again", cache, command, before)
    seconds = again.run()
    assert found(again.folder) == expected
    kills, rounds = 0, 0
    while kills < KILLS:
        place = Place(tmp_path / f"killed-{rounds}", cache, command, before)
        rounds += 1
        # What is left of the work shrinks from kill to kill, so that a few suffice.
        for _ in range(3):
            if not place.kill(moments.uniform(0.0, seconds)):
                break
            kills += 1
        place.run()
        assert found(place.folder) == expected
        assert rounds < 4 * KILLS


def written(folder):
    return json.loads((folder / "results.json").read_text())


def test_building_a_faculty(tmp_path):
    task = data.synthetic(num_classes=4, height=4, width=4, train_per_class=40, test_per_class=10)
    path = write_npz(tmp_path / "toy.npz", task)
    command = ["-m", "experiments.build_faculty", "--workdir=FOLDER", "--root=FOLDER/faculty"]
    command += [f"--datasets={path}", "--num_teachers=5", "--architectures=mlp", "--steps=200"]

    def found(folder):
        root = folder / "faculty"
        cards = faculty.cards(root)
        for card in cards:
            faculty.load(root, card.name)  # the checksums agree
        assert sorted(os.listdir(root / "teachers")) == sorted(card.name for card in cards)
        assert not list(folder.glob(".*.tmp"))
        return cards, written(folder)["teachers"]

    survive(tmp_path, command, found)


def test_observing(tmp_path):
    def before(folder):
        toy_faculty.make(folder)

    def found(folder):
        root = folder / "faculty"
        # What kills have left half-made goes, and nothing else does.
        left = [one.path.name for one in faculty.prune(root)]
        assert all(name.endswith((".new", ".parts")) for name in left), left
        names = sorted(one.path.name for one in faculty.holdings(root))
        assert len(names) == 4 and not any(name.startswith(".") for name in names)
        return {
            path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((root / "outputs").rglob("*.npy"))
        }

    survive(tmp_path, ["-c", OBSERVE, "FOLDER", "FOLDER/faculty"], found, before=before)


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "world").mkdir()
    made = toy_faculty.make(tmp_path / "world")
    return [f"--{key}={value}" for key, value in made.items() if key != "steps"]


def test_comparing_scores(tmp_path, flags):
    command = ["-m", "experiments.compare_scores", "--workdir=FOLDER", *flags, "--steps=150"]
    command += ["--objective=transport", "--scores=leep,size", "--num_tasks=2", "--seeds=3"]

    def found(folder):
        lines = (folder / "runs.jsonl").read_text().splitlines()
        jobs = [json.dumps({**json.loads(line), "value": 0}) for line in lines[1:]]
        assert len(jobs) == len(set(jobs)) == 2 * 3 * (1 + 2)  # none lost, none twice
        results = written(folder)
        return {key: results[key] for key in ("scores", "pairs", "values", "tasks", "by_task")}

    survive(tmp_path, command, found, seed=1)


def test_distilling_a_student(tmp_path, flags):
    command = ["-m", "experiments.distil_student", "--workdir=FOLDER", *flags, "--resume"]
    command += ["--objective=transport", "--steps=600", "--save_every=40", "--validation=0.3"]

    def found(folder):
        results = written(folder)
        kept = {key: results[key] for key in ("accuracy", "history", "shares", "step", "judged")}
        checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
        assert checkpoints == ["520", "560", "600"]
        return kept, (folder / "metrics.jsonl").read_text()

    survive(tmp_path, command, found, seed=2)


def test_two_runs_at_once_in_one_workdir(tmp_path, flags):
    """The second is refused, and the first is not disturbed."""
    command = ["-m", "experiments.distil_student", "--workdir=FOLDER", *flags, "--steps=2000"]
    command += ["--objective=transport", "--save_every=40"]
    place = Place(tmp_path / "both", tmp_path / "compiled", command)
    first = place.start()
    second = subprocess.run(
        [sys.executable, *(part.replace("FOLDER", str(place.folder)) for part in command)],
        cwd=REPOSITORY,
        env=place.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert first.poll() is None, "the first must outlast the start of the second"
    assert second.returncode == 2
    assert f"error: another run is at work in {place.folder}" in second.stderr
    _, told = first.communicate(timeout=600)
    assert first.returncode == 0, told.decode()
    assert written(place.folder)["step"] == 2000


def test_two_processes_build_one_faculty(tmp_path):
    """Both register into it at the same time; no teacher is lost."""
    task = data.synthetic(num_classes=4, height=4, width=4, train_per_class=40, test_per_class=10)
    root, processes = tmp_path / "faculty", []
    for number in range(2):
        path = write_npz(tmp_path / f"toy{number}.npz", task)
        command = ["-m", "experiments.build_faculty", f"--workdir={tmp_path / str(number)}"]
        command += [f"--root={root}", f"--datasets={path}", "--num_teachers=6"]
        command += ["--architectures=mlp", "--steps=5"]
        processes.append(subprocess.Popen([sys.executable, *command], cwd=REPOSITORY))
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    cards = faculty.cards(root)
    assert len({card.name for card in cards}) == len(cards) == 12
    for card in cards:
        faculty.load(root, card.name)
    shutil.rmtree(root)
    assert np.isfinite([card.source_accuracy for card in cards]).all()
