"""The house's rules: who may import whom, who owns which library, and what importing may do."""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

FLOORS = (
    {"types", "checks", "locks", "processes", "sharding"},
    {"belief", "costs", "crossfit", "trust", "transport", "regulation", "selection", "metrics"}
    | {"data", "checkpoints", "models"},
    {"losses", "scores", "faculty", "reports"},
    {"objectives"},
    {"training", "crossvalidation"},
)
# Rooms of one floor stand apart, but for the pairs listed here: (importer, imported): reason.
NEIGHBOURS: dict[tuple[str, str], str] = {
    ("processes", "checks"): "what cannot come together is bad input"
}

OWNERS = {
    "ott": "transport",
    "orbax": "checkpoints",
    "tensorflow_datasets": "data",
    "grain": "data",
    "array_record": "data",
    "matplotlib": "reports",
    "onnx": "faculty",
    "onnxruntime": "faculty",
    "safetensors": "faculty",
    "rich": "reports",
}
# torch and ot (POT) are other people's solvers: references of tests and benchmarks.
FOREIGN = {"torch", "ot", "tensorflow", "experiments", "benchmarks", "tests"}
MAX_LINES = 400


def modules(root):
    """Syntax trees by dotted name of all modules of the package fdjax under `root`."""
    found = {}
    for path in sorted((root / "fdjax").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name, trees):
    """Dotted names that a module imports, wherever in the file the statement stands."""
    is_package = any(other.startswith(f"{name}.") for other in trees)
    found = set()
    for node in ast.walk(trees[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")
                package = package[: len(package) - node.level + is_package]
                base = ".".join([*package, *([base] if base else [])])
            # `from a import b` imports the module a.b where there is one, else a name of a.
            for alias in node.names:
                module = f"{base}.{alias.name}"
                found.add(module if module in trees else base)
    return found


def room(name):
    """The top-level module or package of fdjax that a module belongs to."""
    return [*name.split("."), ""][1]


def floor_faults(trees):
    heights = {member: height for height, floor in enumerate(FLOORS) for member in floor}
    faults = []
    for name in trees:
        here = room(name)
        if not here:
            continue  # fdjax/__init__.py shows all rooms
        if here not in heights:
            faults.append(f"{name}: give the room `{here}` a floor")
            continue
        for target in sorted(imports(name, trees)):
            there = room(target)
            if target.split(".")[0] != "fdjax" or there == here:
                continue
            if not there:
                faults.append(f"{name}: imports the whole of fdjax; name the room")
            elif heights.get(there, len(FLOORS)) > heights[here]:
                faults.append(f"{name}: imports {target} of a higher floor")
            elif heights[there] == heights[here] and (here, there) not in NEIGHBOURS:
                faults.append(f"{name}: imports its neighbour {target}")
    return faults


def owner_faults(trees):
    faults = []
    for name in trees:
        for target in sorted(imports(name, trees)):
            library = target.split(".")[0]
            if library in FOREIGN:
                faults.append(f"{name}: imports {library}")
            elif OWNERS.get(library, room(name)) != room(name):
                faults.append(f"{name}: imports {library}, which belongs to {OWNERS[library]}")
    return faults


def circles(trees):
    graph = {name: sorted(imports(name, trees) & set(trees)) for name in trees}
    found = []
    done = set()

    def visit(name, path):
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in graph[name]:
                visit(target, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def size_faults(root):
    faults = []
    for folder in ("fdjax", "experiments", "benchmarks", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > MAX_LINES and folder != "tests":
                faults.append(f"{path.relative_to(root)}: {lines} lines")
            if path.stem.strip("_") in ("utils", "util", "helpers", "misc"):
                faults.append(f"{path.relative_to(root)}: name it by what it holds")
    return faults


def test_imports_point_down():
    assert floor_faults(modules(ROOT)) == []


def test_each_library_has_one_owner():
    assert owner_faults(modules(ROOT)) == []


def test_no_import_circles():
    assert circles(modules(ROOT)) == []


def test_files_are_small_and_named_by_their_content():
    assert size_faults(ROOT) == []


def test_every_floor_is_of_a_room_that_exists_or_is_planned():
    rooms = [member for floor in FLOORS for member in floor]
    assert len(rooms) == len(set(rooms))
    assert set(OWNERS.values()) <= set(rooms)
    assert all(pair[0] in rooms and pair[1] in rooms for pair in NEIGHBOURS)


@pytest.fixture
def crooked_house(tmp_path):
    """A package that breaks every rule once."""
    files = {
        "fdjax/__init__.py": "from fdjax import costs, training\n",
        "fdjax/costs.py": "def f():\n    from fdjax.scores import knn\n",
        "fdjax/metrics.py": "import fdjax\nfrom fdjax import costs\n",
        "fdjax/scores/__init__.py": "from fdjax.scores.knn import knn\n",
        "fdjax/scores/knn.py": "from . import logme\nimport ott.geometry\nimport torch\n",
        "fdjax/scores/logme.py": "from .knn import knn\n",
        "fdjax/training.py": "from fdjax import scores\nimport matplotlib.pyplot\n",
        "fdjax/extras.py": "\n",
        "experiments/_utils.py": "\n" * (MAX_LINES + 1),
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_rules_bite(crooked_house):
    trees = modules(crooked_house)
    assert floor_faults(trees) == [
        "fdjax.costs: imports fdjax.scores.knn of a higher floor",
        "fdjax.extras: give the room `extras` a floor",
        "fdjax.metrics: imports the whole of fdjax; name the room",
        "fdjax.metrics: imports its neighbour fdjax.costs",
    ]
    assert owner_faults(trees) == [
        "fdjax.scores.knn: imports ott, which belongs to transport",
        "fdjax.scores.knn: imports torch",
        "fdjax.training: imports matplotlib, which belongs to reports",
    ]
    assert circles(trees) == ["fdjax.scores.knn -> fdjax.scores.logme -> fdjax.scores.knn"]
    assert size_faults(crooked_house) == [
        f"experiments/_utils.py: {MAX_LINES + 1} lines",
        "experiments/_utils.py: name it by what it holds",
    ]


# Run in a fresh interpreter: what `import fdjax` brings in and does, as JSON.
LOOK = """
import json, logging, os, sys, threading
import jax
config, environment = dict(jax.config.values), dict(os.environ)
handlers, threads = list(logging.root.handlers), threading.active_count()
deeds, watching = [], True

def watch(event, arguments):
    if not watching:
        return
    if event.startswith(("socket.connect", "socket.getaddrinfo", "subprocess", "os.system")):
        deeds.append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        deeds.append(f"{event} {arguments[0]}")

sys.addaudithook(watch)
import fdjax
watching = False
jax.config.update("jax_num_cpu_devices", 3)  # fails if the import has started the devices
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "config": [name for name in config if jax.config.values[name] != config[name]
               and name != "jax_num_cpu_devices"],
    "environment": dict(os.environ) == environment,
    "handlers": logging.root.handlers == handlers,
    "threads": threading.active_count() == threads,
    "deeds": deeds,
    "devices": len(jax.devices("cpu")),
}))
"""


@pytest.fixture(scope="module")
def seen():
    command = [sys.executable, "-B", "-W", "error", "-c", LOOK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_leaves_heavy_libraries_out(seen):
    heavy = {"ott", "tensorflow_datasets", "orbax", "matplotlib", "sklearn", "tensorflow"}
    heavy |= {"torch", "grain", "ot", "onnx", "onnxruntime", "safetensors"}  # rich comes with flax
    heavy -= {"rich"}
    assert heavy & set(seen["modules"]) == set()


def test_import_takes_no_action(seen):
    assert seen["config"] == []
    assert seen["deeds"] == []
    assert seen["environment"]
    assert seen["handlers"]
    assert seen["threads"]
    assert seen["devices"] == 3
