"""What the README and the other pages promise: commands, modules and links that exist."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(ROOT.glob("*.md"))
TEXT = {".py", ".md", ".toml", ".txt", ".cfg", ".json", ".yaml", ".yml", ".csv", ".sh", ""}
MACHINE_PATH = re.compile(r"(?<![\w.$}>])/(?:home|root|Users|tmp|var|mnt|media|opt|srv|work)/\w")


def read(*parts):
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def commands(page):
    """The fenced blocks of shell commands of a Markdown page, in order."""
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)]


def modules(page):
    """Files of the experiments and benchmarks that a page tells the reader to run."""
    names = re.findall(r"python -m ((?:experiments|benchmarks)(?:\.\w+)+)", page)
    return [name.replace(".", "/") + ".py" for name in names]


def links(page):
    """Relative links of a page, without their anchors."""
    targets = re.findall(r"\]\(<?([^)>#\s]+)", page)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def test_page_readers():
    page = (
        "Do\n```sh\na && b\n```\nor `python -m experiments.x.y --z` [c](d/e.md#f) [g](http://h)\n"
    )
    assert commands(page) == ["a && b"]
    assert modules(page) == ["experiments/x/y.py"]
    assert links(page) == ["d/e.md"]
    assert MACHINE_PATH.search("see /" + "home/me/x")
    assert not MACHINE_PATH.search("https://host/" + "home/me $HOME/" + "tmp/x ./" + "tmp/x")


def test_first_command_does_the_main_job():
    main = commands(read("README.md"))[0]
    assert main.startswith("pip install -e . && python -m experiments.")
    assert len(modules(main)) == 1
    assert (ROOT / modules(main)[0]).is_file()


def test_ci_runs_the_test_command_of_the_readme():
    tests = [command for command in commands(read("README.md")) if "python -m pytest" in command]
    assert len(tests) == 1, "the README gives one command that runs the tests"
    assert tests[0] in [line.strip() for line in read(".ci", "run").splitlines()]


def test_ci_script_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pages_name_what_exists(page):
    text = page.read_text(encoding="utf-8")
    missing = [name for name in modules(text) + links(text) if not (ROOT / name).exists()]
    assert missing == []


def test_no_file_names_a_path_of_one_machine():
    folders = ("fdjax", "experiments", "benchmarks", "tests", "docs", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [*PAGES, ROOT / "pyproject.toml", ROOT / "LICENSE", ROOT / ".gitignore"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path.suffix in TEXT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []
