"""Simulated whole slides: rendered block by block into tiled pyramids."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.files import content_hash, read_json, write_json
from morphogen.core.progress import progress
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.slides.pyramid.writer import PyramidWriter

_BLOCK = 512  # pixels rendered at a time, and side of the tiles


def write_slide(
    path: Path | str,
    width: int,
    height: int,
    *,
    simulator: TissueSimulator,
    ihc_path: Path | str | None = None,
    quality: int = 90,
) -> Path:
    """The simulator's window (0, 0, width, height) as a tiled pyramidal OME-TIFF, with its immunostained partner.

    Memory stays within a few rows of tiles. A run that was killed continues where it stopped, to the same bytes;
    files that are there are left alone. Returns ``path``.
    """
    path = Path(path)
    wanted = {"he": path} | ({"ihc": Path(ihc_path)} if ihc_path is not None else {})
    for file in wanted.values():
        if file.suffix.lower() not in (".tif", ".tiff"):
            raise InputError("a simulated slide is a TIFF file", where=file, fix="Name it .tif or .ome.tif")
    if width < 1 or height < 1:
        raise InputError(f"a slide of {width} × {height} pixels holds nothing", where=path)
    wanted = {name: file for name, file in wanted.items() if not file.exists()}
    if not wanted:
        return path
    facts = simulator.describe()
    # The scratch files know the size of the image but not whose it is.
    note = path.with_name(f".{path.name}.simulation.json")
    identity = content_hash(facts, width, height)
    resume = note.is_file() and read_json(note) == identity
    with ExitStack() as stack:
        writers = {}
        for name, file in wanted.items():
            writers[name] = stack.enter_context(
                PyramidWriter(
                    file,
                    width,
                    height,
                    mpp=simulator.mpp,
                    tile=_BLOCK,
                    quality=quality,
                    background=None,
                    magnification=10.0 / simulator.mpp,
                    facts={key: str(value) for key, value in facts.items()} | {"layer": name},
                    resume=resume,
                )
            )
        write_json(note, identity)
        places = [(y, x) for y in range(0, height, _BLOCK) for x in range(0, width, _BLOCK)]
        for y, x in progress(places, what="rendering blocks"):
            rows, cols = min(_BLOCK, height - y), min(_BLOCK, width - x)
            if all(writer.done(y, x, rows, cols) for writer in writers.values()):
                continue
            tissue = simulator.render(x, y, cols, rows, ihc="ihc" in writers)
            for name, writer in writers.items():
                writer.write(getattr(tissue, name), y, x)
    note.unlink(missing_ok=True)
    return path
