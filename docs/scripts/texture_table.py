"""Write the table of feature families into docs/texture.md from the code: ``python
docs/scripts/texture_table.py``."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "texture.md"
BEGIN, END = "<!-- families: written by docs/scripts/texture_table.py -->\n", "<!-- end -->"


def table() -> str:
    """One row per family: name, how many numbers, the first sentence of its documentation, an example."""
    import torch

    from morphogen.slides.encoders.texture.encoder import FAMILIES, TextureEncoder
    from morphogen.slides.encoders.texture.planes import planes

    p = planes(torch.full((2, 64, 64, 3), 255, dtype=torch.uint8))
    rows = ["| family | numbers | what | example |", "|---|---:|---|---|"]
    total = 0
    for family in FAMILIES:
        names = family(p)[0]
        total += len(names)
        what = " ".join((family.__doc__ or "").split("\n\n")[0].split())
        what = (
            what.replace(":func:`local_patterns`", "local binary patterns").replace("`", "").replace("|", "/")
        )
        rows.append(f"| {family.__name__.replace('_', ' ')} | {len(names)} | {what} | `{names[0]}` |")
    rows.append(f"| **all** | **{total}** | | |")
    cell = TextureEncoder((1, 1)).names
    rows += ["", f"A token has {len(cell)} numbers, of which 12 say where it is."]
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The page with its table brought up to date."""
    start = text.index(BEGIN) + len(BEGIN)
    return text[:start] + "\n" + table() + "\n" + text[text.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
