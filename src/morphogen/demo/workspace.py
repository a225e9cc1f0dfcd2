"""What a chapter of the demonstration is given, and what it must offer."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

from morphogen.report import Report


@dataclass
class Workspace:
    """Folders and choices of one run of the demonstration.

    Attributes
    ----------
    folder: the report's folder; data and results of a chapter go below it.
    quick: cut sizes down to a smoke run (pictures are then poor, figures mean nothing).
    headlines: one figure per chapter for the top of the report, filled by the chapters.
    """

    folder: Path
    device: str = "auto"
    seed: int = 0
    quick: bool = False
    headlines: dict[str, str] = field(default_factory=dict)

    def place(self, *parts: str) -> Path:
        """A path below the report's folder; its parent exists."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def size(self, full: int, quick: int) -> int:
        """A count that a smoke run cuts down."""
        return quick if self.quick else full


class Chapter(Protocol):
    """A module of :mod:`morphogen.demo.chapters`."""

    TITLE: str
    COMMANDS: str
    """The commands that do the same, shown in the report."""

    def run(self, work: Workspace, report: Report) -> None:
        """Do the work and write the chapter."""
        ...


def real_slide(work: Workspace, *room: str) -> Path:
    """The CMU-1 region that comes with the package, copied beside the report so that its results lie there too.

    room: a folder of its own, for a chapter that needs other tiles than those another one keeps beside the slide.
    """
    target = work.place("data", *room, "cmu-1-small-region.svs")
    if not target.exists():
        from morphogen.core.files import write_bytes

        with as_file(files("morphogen.demo") / "assets" / target.name) as source:
            write_bytes(target, source.read_bytes())
    return target


def stain_model() -> Path:
    """Folder of the small stain model that comes with the package: H&E → ER, simulated tissue alone.

    Raises :class:`~morphogen.core.errors.InputError` when it was left out of this installation.
    """
    return _packaged("stain-er")


def tissue_model() -> Path:
    """Folder of the small tissue model that comes with the package: images from embeddings of ``texture``, the upper
    part of the packaged slide alone. Raises like :func:`stain_model`."""
    return _packaged("tissue-cmu-1")


def _packaged(name: str) -> Path:
    from morphogen.core.errors import InputError

    folder = Path(str(files("morphogen.demo") / "assets" / name))
    if not (folder / "morphogen.json").is_file():
        raise InputError(
            "this installation is without the model of the demonstration",
            where=folder,
            fix="Train one (demo/assets/README.md says how) and name its folder",
        )
    return folder


def shown(function: Callable[..., Any]) -> str:
    """The body of a function as it runs, without its signature and docstring: what the report prints as Python."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    if ast.get_docstring(tree.body[0]):  # type: ignore[arg-type]
        body = body[1:]
    body = [node for node in body if not isinstance(node, ast.Return)]
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    return textwrap.dedent("\n".join(lines[body[0].lineno - 1 : body[-1].end_lineno]))
