"""Drawing patches: from tiles' embeddings, from a table, between two embeddings; batched and resumable."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from morphogen.core.devices import chosen_precision
from morphogen.core.errors import InputError
from morphogen.core.files import atomic_path, content_hash, writable_folder, write_text
from morphogen.core.jobs import Job
from morphogen.core.progress import progress
from morphogen.core.reading.tables import read_table
from morphogen.core.running.threads import in_lanes
from morphogen.core.writing.locks import locks_folder
from morphogen.tissue.data import TileTable
from morphogen.tissue.model import TissueDiffusion
from morphogen.tissue.sampling import TissueSampler

COLUMNS = ("file", "tile", "vector", "seed", "sample", "label", "group")


@dataclass(frozen=True)
class Patches:
    """Patches on disk: the folder, the files in order, their table."""

    folder: Path
    files: list[Path]
    table: Path


@locks_folder()
def draw_patches(
    model: TissueDiffusion,
    tiles: TileTable,
    out: Path | str,
    sampler: TissueSampler | str = "standard",
    *,
    samples: int = 1,
    seed: int = 0,
    batch: int = 16,
    precision: str = "fp32",
) -> Patches:
    """Draw ``samples`` patches from the embedding of every tile, as PNG files under ``out/images``.

    ``out/manifest.csv`` names for each file the tile, the hash of its vector, seed and sample. A killed run goes on
    with the patches that are missing, to the same bytes; an item's noise is that of its name, whatever the batch.
    """
    sampler = TissueSampler.of(sampler)
    out, precision = writable_folder(out), chosen_precision(precision, model.device)
    facts = {
        "model": model.identity,
        "tiles": tiles.identity(),
        "sampler": sampler.to_dict(),
        "samples": samples,
        "seed": seed,
        "precision": precision,
    }
    Job(facts).begin(out / "job.json", "patches")
    folder = writable_folder(out / "images")
    wanted = [(row, k) for row in range(len(tiles)) for k in range(samples)]
    files = [folder / f"{_safe(tiles.names[row])}{f'-{k}' if samples > 1 else ''}.png" for row, k in wanted]
    if len(set(files)) != len(files):
        raise InputError("two tiles have the same name", where="tiles", fix="Rename one")
    todo = [number for number, path in enumerate(files) if not path.is_file()]
    starts = range(0, len(todo), batch)
    model.expect(len(starts) * sampler.evaluations(model.schedule))

    def drawn(start: int) -> tuple[list[int], np.ndarray]:
        here = todo[start : start + batch]
        rows = [wanted[number][0] for number in here]
        region = tiles.features.get("region")
        made = model(
            tiles.features["patch"][rows],
            sampler,
            region=None if region is None else region[rows],
            seed=seed,
            keys=[(tiles.names[wanted[n][0]], wanted[n][1]) for n in here],
            precision=precision,
        )
        return here, made.images.cpu().numpy()

    with closing(in_lanes(drawn, starts, min(model.lanes, len(starts)))) as batches:
        for here, images in progress(batches, total=len(starts), what="batches"):
            for number, image in zip(here, images, strict=True):
                save_png(image, files[number])
    rows_of = [
        (
            path.relative_to(out).as_posix(),
            tiles.names[row],
            content_hash(tiles.features["patch"][row])[:16],
            seed,
            k,
            tiles.labels[row] if tiles.labels else "",
            tiles.groups[row],
        )
        for path, (row, k) in zip(files, wanted, strict=True)
    ]
    return Patches(out, files, _write_table(out / "manifest.csv", rows_of))


def interpolate_patches(
    model: TissueDiffusion,
    ends: np.ndarray,
    count: int,
    sampler: TissueSampler | str = "standard",
    *,
    seed: int = 0,
    precision: str = "fp32",
) -> np.ndarray:
    """(count, px, px, 3) uint8: patches along the arc between two embeddings (2, D), all from one noise."""
    from morphogen.tissue.canvases.grid import interpolated

    vectors = interpolated(ends, (1, count)).patch[0]
    made = model(vectors, sampler, seed=seed, keys=["interpolation"] * count, precision=precision)
    return made.images.cpu().numpy()


def save_png(image: np.ndarray, path: Path) -> None:
    """(H, W, 3) uint8 as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def read_patches(folder: Path | str) -> tuple[list[dict[str, str]], list[Path]]:
    """Rows of ``manifest.csv`` of a folder of patches, and their files."""
    table = Path(folder) / "manifest.csv"
    if not table.is_file():
        raise InputError(
            "there are no patches here: no manifest.csv", where=folder, fix="Run 'morphogen tissue patches'"
        )
    rows = read_table(table, ("file",)).rows
    return [dict(row.cells) for row in rows], [row.file("file") for row in rows]


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-." else "_" for c in name)
