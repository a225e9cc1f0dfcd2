"""The tutorials of examples/tutorials as pages: ``python docs/scripts/tutorials.py [NAME…]``.

A tutorial is a script with cell marks (``# %%``, ``# %% [markdown]``), which editors and Jupytext open as a notebook.
Every cell is run; what it prints and the figures it leaves go into ``docs/tutorials/NAME.md`` and
``docs/images/tutorials``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "tutorials"
PAGES = ROOT / "docs" / "tutorials"
PICTURES = ROOT / "docs" / "images" / "tutorials"
_MARK = re.compile(r"^# %%(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A piece of a tutorial: text in Markdown, or code."""

    text: str
    code: bool


def cells_of(script: Path) -> list[Cell]:
    """The cells of a script, in order."""
    parts = _MARK.split(script.read_text(encoding="utf-8"))[1:]
    cells = []
    for mark, body in zip(parts[::2], parts[1::2]):
        body = body.strip("\n")
        if "[markdown]" in mark:
            cells.append(Cell("\n".join(re.sub("^# ?", "", line) for line in body.splitlines()), False))
        elif body:
            cells.append(Cell(body, True))
    return cells


def run(
    script: Path, folder: Path, changes: Mapping[str, object] | None = None
) -> list[tuple[str, list[bytes]]]:
    """Run the cells in ``folder``; what each prints, and its figures as PNG.

    changes: constants of the script (``STEPS = 300`` alone on a line) to set otherwise.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names: dict[str, object] = {"__name__": "__main__"}
    out = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        for cell in cells_of(script):
            if not cell.code:
                out.append(("", []))
                continue
            code = cell.text
            for name, value in (changes or {}).items():
                code = re.sub(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(code, str(script), "exec"), names)
            figures = []
            for number in plt.get_fignums():
                buffer = io.BytesIO()
                plt.figure(number).savefig(buffer, format="png", dpi=80)
                figures.append(buffer.getvalue())
            plt.close("all")
            out.append((said.getvalue().strip(), figures))
    finally:
        os.chdir(before)
    return out


def page(script: Path, results: list[tuple[str, list[bytes]]]) -> tuple[str, dict[str, bytes]]:
    """Markdown of a tutorial with its results, and its pictures (JPEG) by name."""
    parts, pictures = [], {}
    for cell, (said, figures) in zip(cells_of(script), results):
        parts.append(f"```python\n{cell.text}\n```" if cell.code else cell.text)
        if said:
            parts.append(f"```text\n{said}\n```")
        for figure in figures:
            name = f"{script.stem}-{len(pictures) + 1}.jpg"
            pictures[name] = _jpeg(figure)
            parts.append(f"![A figure that the code above draws](../images/tutorials/{name})")
    return "\n\n".join(parts) + "\n", pictures


def _jpeg(png: bytes) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def main(names: list[str]) -> None:
    for script in sorted(SCRIPTS.glob("*.py")):
        if names and script.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            text, pictures = page(script, run(script, Path(folder)))
        PAGES.mkdir(exist_ok=True)
        PICTURES.mkdir(exist_ok=True)
        (PAGES / script.name).with_suffix(".md").write_text(text, encoding="utf-8")
        for name, data in pictures.items():
            (PICTURES / name).write_bytes(data)
        sys.stdout.write(f"{script.stem}: {len(pictures)} pictures\n")


if __name__ == "__main__":
    main(sys.argv[1:])
