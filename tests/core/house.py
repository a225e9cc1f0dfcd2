"""What the package looks like from outside: who imports whom, circles, rooms and floors, long files, full folders.

``python tests/core/house.py`` prints it; ``test_house.py`` holds it.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "morphogen"

# Imports point down this list only; rooms on one line do not import each other.
FLOORS = [
    ["core"],
    ["slides"],
    ["diffusion"],
    ["nets"],
    ["metrics"],
    ["training"],
    ["checkpoints"],
    ["report"],
    ["view"],
    ["tasks"],
    ["expression", "stain", "tissue", "layout"],
    ["bridges"],
    ["demo"],
    ["cli"],
]
TASK_ROOMS = ("expression", "stain", "tissue", "layout")
BUILDING: tuple[str, ...] = ()  # task rooms that are not whole yet
FURNITURE = ("config", "data", "model", "train", "predict", "evaluate")


def python_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """``slides.pyramid.writer``; a package by its own name."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in python_files()}


@cache
def handed_on(package: str) -> dict[str, str]:
    """Name → module of what a lazy face hands on (it says so to type checkers)."""
    path = modules().get(package)
    if path is None or path.name != "__init__.py":
        return {}
    return {
        alias.asname or alias.name: node.module.removeprefix("morphogen.")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("morphogen.")
        for alias in node.names
    }


def resolved(module: str, name: str) -> str:
    """The module that ``from morphogen.<module> import <name>`` reads, through any number of faces."""
    inner = f"{module}.{name}" if module else name
    if inner in modules():
        return inner
    home = handed_on(module).get(name)
    return resolved(home, name) if home is not None and home != module else module


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, through faces to where the names live."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("morphogen.")]
            found |= {name.removeprefix("morphogen.") for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "morphogen":
            module = (node.module or "").removeprefix("morphogen").removeprefix(".")
            found |= {resolved(module, alias.name) for alias in node.names}
    return {name for name in found if name in modules() and modules()[name] != path}


def graph() -> dict[str, set[str]]:
    """Every file and the files it imports. Faces import nothing: they hand on names when these are asked for."""
    return {name: set() if path.name == "__init__.py" else imports(path) for name, path in modules().items()}


def circles(edges: dict[str, set[str]] | None = None) -> list[list[str]]:
    """Groups of files that import each other, over any number of steps (Tarjan 1972)."""
    edges = graph() if edges is None else edges
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return sorted(found)


def folders() -> dict[str, int]:
    """Files in each folder, faces aside."""
    return Counter(
        str(path.parent.relative_to(SOURCE)) for path in python_files() if path.name != "__init__.py"
    )


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def described() -> str:
    """The house in a few lines of text."""
    size: Counter[str] = Counter()
    for path in python_files():
        size[path.relative_to(SOURCE).parts[0]] += lines(path)
    longest = max(python_files(), key=lines)
    fullest = max(folders().items(), key=lambda item: item[1])
    out = ["floors, imports point down:"]
    for rooms in reversed(FLOORS):
        there = [f"{room} ({size[room]} lines)" for room in rooms if size[room]]
        out.append("  " + ", ".join(there))
    found = circles()
    out.append(f"circles of imports: {len(found)}")
    out += [f"  {' ↔ '.join(group)}" for group in found]
    for room in TASK_ROOMS:
        lacks = [name for name in FURNITURE if f"{room}.{name}" not in modules()]
        if size[room]:
            out.append(f"furniture of {room}: " + ("whole" if not lacks else f"without {', '.join(lacks)}"))
    out.append(f"longest file: {longest.relative_to(SOURCE)}, {lines(longest)} lines")
    out.append(f"fullest folder: {fullest[0]}, {fullest[1]} files")
    out.append(f"lines of src, demo aside: {sum(size.values()) - size['demo']}")
    return "\n".join(out)


if __name__ == "__main__":
    sys.stdout.write(described() + "\n")
