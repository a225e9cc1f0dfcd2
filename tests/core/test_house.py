"""The plan of the house, held: no circles, the same furniture everywhere, no full folders, nothing undeclared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from . import house
from .house import BUILDING, FURNITURE, SOURCE, TASK_ROOMS, circles, folders, modules, python_files, tree

FULL = 14  # files in a folder, its face aside


def rooms() -> list[str]:
    return [room for room in TASK_ROOMS if (SOURCE / room).is_dir()]


def test_no_two_files_import_each_other():
    found = [group for group in circles() if group[0].split(".")[0] not in BUILDING]
    assert not found, f"circles of imports: {found}"


def test_circles_are_found():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert circles(edges) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_faces_are_looked_through():
    """``from morphogen.slides import Slide`` is an import of the file that Slide lives in."""
    assert house.resolved("slides", "Slide") == "slides.slide"
    assert house.resolved("slides", "get_encoder") == "slides.encoders.registry"
    assert "slides.slide" in house.graph()["tasks.pyramids"]


@pytest.mark.parametrize("room", rooms())
def test_every_task_room_has_the_same_furniture(room):
    lacks = [name for name in FURNITURE if f"{room}.{name}" not in modules()]
    assert not lacks or room in BUILDING, f"{room} lacks {', '.join(lacks)}"
    files = {path.stem for path in (SOURCE / room).glob("*.py")}
    assert len(files) <= FULL


def test_no_folder_is_full():
    full = {name: count for name, count in folders().items() if count > FULL}
    assert not full, f"folders of more than {FULL} files: {full}"


def test_the_house_can_be_printed():
    done = subprocess.run([sys.executable, house.__file__], capture_output=True, text=True, check=True)
    for part in ("floors, imports point down", "circles of imports: ", "longest file: ", "lines of src"):
        assert part in done.stdout


def distributions(names: list[str]) -> set[str]:
    """Names of packages as the index spells them, of requirement strings."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~;\[]", name, maxsplit=1)[0]).lower() for name in names}


def imported() -> dict[str, set[Path]]:
    """Top-level modules of others that the package imports anywhere, and where."""
    found: dict[str, set[Path]] = {}
    for path in python_files():
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "morphogen":
                    found.setdefault(top, set()).add(path.relative_to(SOURCE))
    return found


def test_every_import_is_declared():
    """What is imported stands in pyproject.toml; it does not merely happen to come with something else."""
    project = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]
    declared = distributions(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        declared |= distributions(extra)
    homes = metadata.packages_distributions()
    undeclared = {
        name: sorted(map(str, places))[:3]
        for name, places in imported().items()
        if not distributions(homes.get(name, [name])) & declared
    }
    assert not undeclared, f"imports that pyproject.toml does not declare: {undeclared}"


def test_no_mark_of_a_merge_was_left():
    """Git's three marks at the beginning of a line, in whatever file of text."""
    marks = re.compile(rb"^(<{7} |>{7} |={7}$)", re.MULTILINE)
    root = SOURCE.parents[1]
    kinds = {".py", ".md", ".yml", ".toml", ".txt", ".json", ".js", ".css", ".html", ".sbatch", ""}
    named = [
        path for top in ("src", "tests", "docs", "bench", "examples") for path in (root / top).rglob("*")
    ]
    files = [path for path in [*named, *root.glob("*")] if path.is_file() and path.suffix in kinds]
    assert len(files) > 400
    assert not [str(path.relative_to(root)) for path in files if marks.search(path.read_bytes())]


def test_every_page_is_on_the_site():
    docs = SOURCE.parents[1] / "docs"
    listed = set(re.findall(r": ([\w/-]+\.md)$", (docs.parent / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
