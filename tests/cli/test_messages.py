"""Every command and every option that a message or a page names exists."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import morphogen
from morphogen.cli.main import ROOMS
from morphogen.core.config import describe

SOURCE = Path(morphogen.__file__).parent
ROOT = SOURCE.parents[1]
OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w.-]*[\w])")
QUOTED = re.compile(r"(?<=['`])morphogen ([a-z]+)[^'`\n]*")
COMMAND = re.compile(r"\bmorphogen ([a-z]+)(?: ([a-z][a-z-]*))?")
THERE = [room for room in ROOMS if (SOURCE / "cli" / f"{room}.py").is_file()]
EVERYWHERE = {"help", "version", "debug", "set", "show-settings", "section.key", "key", "a.b"}
# Options of other programs that pages and messages name.
OTHERS = {
    *("nproc_per_node", "nnodes", "standalone", "rdzv_backend", "rdzv_endpoint", "node_rank", "array"),
    *("extra-index-url", "index-url", "no-deps", "gpus-per-node", "ntasks-per-node", "nproc-per-node"),
    *("local-dir", "write", "choose"),
}


@cache
def verbs(room: str) -> dict[str, set[str]]:
    """Verb → its options, without dashes; ``""`` is the room itself."""
    app = importlib.import_module(f"morphogen.cli.{room}").app
    found = {}
    for name in app:
        if not name.startswith("-"):
            found[name] = {
                option.lstrip("-")
                for argument in app[name].assemble_argument_collection()
                for option in argument.names
            }
    if app.default_command is not None:
        arguments = app.assemble_argument_collection()
        found[""] = {option.lstrip("-") for argument in arguments for option in argument.names}
    return found


@cache
def settings(room: str) -> set[str]:
    """Dotted names of the settings of all verbs of a room, and their short names."""
    path = SOURCE / "cli" / f"{room}.py"
    tree = ast.parse(path.read_text())
    homes = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_config":
            cls = getattr(
                importlib.import_module(homes[ast.unparse(node.args[0])]), ast.unparse(node.args[0])
            )
            names |= {key for key, _, _ in describe(cls)} | set(cls.ALIASES)
            names |= {key.rpartition(".")[0] + ".preset" for key in names if key.endswith(".solver")}
    return names


def known(option: str, room: str | None) -> bool:
    if option in EVERYWHERE | OTHERS:
        return True
    rooms = [room] if room in THERE else THERE
    for each in rooms:
        options = set().union(*verbs(each).values()) if verbs(each) else set()
        spelt = settings(each)
        if option in options or option.replace("-", "_") in spelt:
            return True
    return False


def wrong(text: str, room: str | None) -> list[str]:
    """What ``text`` names that is not there."""
    lost = []
    rest = text
    for quoted in QUOTED.finditer(text):  # a command of another room has that room's options
        rest = rest.replace(quoted[0], " ")
        lost += [f"--{option}" for option in OPTION.findall(quoted[0]) if not known(option, quoted[1])]
    lost += [f"--{option}" for option in OPTION.findall(rest) if not known(option, room)]
    for first, second in COMMAND.findall(text):
        if first not in THERE:
            continue  # prose: "morphogen is"
        if second and second not in verbs(first) and "" not in verbs(first):
            lost.append(f"morphogen {first} {second}")
    return lost


def messages(path: Path) -> list[tuple[int, str]]:
    """Strings of a file, docstrings too; what an f-string fills in is left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            found.append((node.lineno, text))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value))
    return found


TASKS = ("expression", "stain", "tissue", "layout")


@pytest.mark.parametrize("room", sorted(p.name for p in SOURCE.iterdir() if (p / "__init__.py").is_file()))
def test_messages_name_what_there_is(room):
    task = room if room in TASKS else None
    if task is not None and task not in THERE:
        pytest.skip(f"{task} has no commands yet")
    lost = [
        f"{path.relative_to(SOURCE)}:{line} names {name}"
        for path in sorted((SOURCE / room).rglob("*.py"))
        for line, text in messages(path)
        for name in wrong(text, task)
    ]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem
)
def test_pages_name_what_there_is(page):
    text = page.read_text()
    lost: list[str] = []
    for code in re.findall(r"`[^`]+`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "python" not in code and ".py" not in code:  # options of scripts are theirs
            lost += wrong(code, None)
    for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if named := COMMAND.match(line.removeprefix("$ ")):
                lost += wrong(line.partition(" #")[0], named[1])
    assert not lost, lost


def test_what_is_not_there_is_found():
    assert wrong("Use --grid-um or --predict.grids", "expression") == ["--predict.grids"]
    assert wrong("Give --nonsense or `morphogen stain paint`", "stain") == [
        "--nonsense",
        "morphogen stain paint",
    ]
    assert not wrong("Give --mpp, --sampler.steps 5 or `morphogen stain predict`", "stain")
