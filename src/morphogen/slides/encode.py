"""Tiles of a slide through an encoder, kept chunk by chunk, into a table of the slide's store."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.errors import OutputError
from morphogen.core.files import Manifest, atomic_path, content_hash, writable_folder
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import Job
from morphogen.core.provenance import versions
from morphogen.core.reading.arrays import DAMAGED
from morphogen.core.writing.places import own_place
from morphogen.slides.config import EncodeConfig, TileConfig
from morphogen.slides.fields import read_boxes, reading_order
from morphogen.slides.store import (
    NOTES,
    TILES,
    element_name,
    read_attrs,
    table_names,
    table_note,
    write_store,
)
from morphogen.slides.tiles import Tiles, plan_tiles, read_tiles

if TYPE_CHECKING:
    from morphogen.slides.encoders.registry import Encoder
    from morphogen.slides.slide import Slide

_REPLACE = "Pass --overwrite to replace it, or choose another --out"
NO_TISSUE = "no tissue was found, so there are no tiles (a smear, or all tissue? Try --tissue all)"
_CHUNK_BYTES = 128 << 20


@dataclass
class Outcome:
    """What became of one slide.

    Attributes
    ----------
    slide, status:
        The file; ``done``, ``kept`` (finished before), ``blank`` (no tissue, no tiles) or ``failed``.
    tiles, width:
        Number of tiles and of features each.
    seconds, stages:
        Wall time, and its parts: ``tile``, ``read`` (waiting for pixels; most of the decoding happens while the
        encoder works), ``encode``, ``store``.
    store, message:
        Where results are; why it failed, or what else there is to say.
    """

    slide: str
    status: str
    tiles: int = 0
    width: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    store: str = ""
    message: str = ""


def features_key(encoder_name: str, tiles: str = TILES) -> str:
    """Name of the feature table of an encoder, as LazySlide names it: ``<encoder>_tiles``."""
    return f"{element_name(encoder_name)}_{tiles}"


def encode_slide(
    slide: Slide,
    encoder: Encoder,
    config: EncodeConfig | None = None,
    tiles: TileConfig | None = None,
    *,
    overwrite: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Encode the tiles of one slide into the table ``<encoder>_tiles`` of its store.

    Tiles in the store are used as they are; without any (or with ``tiles`` given) they are made first, by default at
    the encoder's own size and µm/px. Finished chunks of features are kept beside the store until the table is
    written, so an interrupted run goes on where it was, to the same numbers. A table made from the same tiles and
    weights is kept.

    Parameters
    ----------
    advance:
        Called with (tiles done, tiles in all) as work proceeds.

    Raises
    ------
    SlideError, OutputError
        As :func:`tile_slide`; also :class:`OutputError` when a table from other tiles or weights is there and
        ``overwrite`` is not set.
    """
    config = config or EncodeConfig()
    began, clock = time.perf_counter(), _Clock()
    with clock("tile"):
        waiting: dict[str, Any] | None = None  # new tiles that replace old ones when their features are there
        known = TILES in read_attrs(slide.store).get("tile_spec", {})
        if tiles is None and known:
            laid = read_tiles(slide)  # overwriting features alone does not touch the tiles
        else:
            plan = tiles or TileConfig(tile_px=encoder.spec.input_px, tile_mpp=encoder.spec.mpp)
            planned = plan_tiles(slide, plan, overwrite=overwrite)
            laid, waiting = planned.tiles, planned.write
            if waiting and (not len(laid) or not table_names(slide.store)):  # no features would be lost
                write_store(slide, **waiting)
                waiting = None
    result = Outcome(str(slide.path), "done", tiles=len(laid), store=str(slide.store))
    if not len(laid):
        result.status, result.message = "blank", NO_TISSUE
        result.seconds = time.perf_counter() - began
        return result
    if laid.mpp is not None and abs(laid.mpp / encoder.spec.mpp - 1) > 0.1:
        result.message = (
            f"tiles of {laid.mpp:g} µm/px; '{encoder.spec.name}' is meant for {encoder.spec.mpp:g}"
        )
    key = features_key(encoder.spec.name)
    job = Job({"encoder": encoder.identity(), "tiles": laid.identity(), "slide": fingerprint(slide.path)})
    if key in table_names(slide.store) and not overwrite:
        _check_same(slide, key, job)
        result.status = "kept"
        result.width = int(table_note(slide.store, key, "width") or 0)
        result.seconds = time.perf_counter() - began
        return result
    parts = own_place(slide.store.with_name(f"{slide.store.stem}.{key}.parts"))
    features = _features(slide, encoder, laid, config, parts, job.mark, clock, advance)
    with clock("store"):
        notes = {
            "encoder": encoder.spec.name,
            "licence": encoder.spec.licence,
            "precision": encoder.precision,
            "made_of": json.dumps(job.facts),
        }
        table = feature_table(laid, features, job.mark, notes, encoder.names)
        write_store(slide, tables={key: table}, **(waiting or {}))
        shutil.rmtree(parts, ignore_errors=True)
    result.width, result.stages = int(features.shape[1]), clock.seconds
    result.seconds = time.perf_counter() - began
    return result


def feature_table(
    tiles: Tiles,
    features: np.ndarray,
    fingerprint: str,
    notes: dict[str, str],
    names: list[str] | None = None,
) -> Any:
    """AnnData as wsidata keeps features (rows = tiles, ``obs.tile_id``), plus tile centres in ``obsm["spatial"]``.

    ``fingerprint`` (what the features were made from) and ``notes`` go to ``uns["morphogen"]``; ``names`` are the
    features' names, ``f0``, ``f1``, … when absent.
    """
    import anndata
    import pandas as pd
    from spatialdata.models import TableModel

    ids = np.arange(len(tiles))
    obs = pd.DataFrame(
        {"tile_id": ids, "library_id": pd.Categorical([TILES] * len(ids)), "tissue_id": tiles.tissue_id},
        index=ids.astype(str),
    )
    table = anndata.AnnData(X=np.asarray(features, dtype=np.float32), obs=obs)
    table.var_names = names or [f"f{i}" for i in range(features.shape[1])]
    table.obsm["spatial"] = tiles.centres
    made_by = {"versions": json.dumps(versions())}  # one entry: each is a file of its own in the store
    table.uns[NOTES] = {"fingerprint": fingerprint, "width": str(features.shape[1]), **notes, **made_by}
    return TableModel.parse(table, region=TILES, region_key="library_id", instance_key="tile_id")


def _check_same(slide: Slide, key: str, job: Job) -> None:
    """Refuse to take the table ``key`` for the result of ``job`` when it is that of another one."""
    if table_note(slide.store, key, "fingerprint") in (job.mark, _former_mark(slide, job)):
        return
    with suppress(ValueError, TypeError):
        kept = json.loads(table_note(slide.store, key, "made_of") or "")
        job.check(kept, f"'{key}'", slide.store, fix=_REPLACE)
    raise OutputError(
        f"already holds '{key}' from other tiles, weights or precision", where=slide.store, fix=_REPLACE
    )


def _former_mark(slide: Slide, job: Job) -> str:
    """How tables were marked that do not say what they were made of: by the slide's size and both its ends."""
    digest, path = hashlib.sha256(), slide.path
    with open(path, "rb") as file:
        digest.update(file.read(1 << 16))
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 16)))
        digest.update(file.read())
    digest.update(str(size).encode())
    return content_hash(job.facts["encoder"], job.facts["tiles"], digest.hexdigest())


def _features(
    slide: Slide,
    encoder: Encoder,
    tiles: Tiles,
    config: EncodeConfig,
    parts: Path,
    mark: str,
    clock: _Clock,
    advance: Callable[[int, int], None] | None,
) -> np.ndarray:
    """(N, D) float32, from the chunks kept in ``parts`` and those computed now.

    Tiles are read block by block, so that a JPEG tile of the file is decoded about once; chunks are in that order.
    """
    found = Manifest.read(parts)
    if found is None or found.get("fingerprint") != mark:
        # Of other tiles or weights, or cut short before its first chunk.
        shutil.rmtree(parts, ignore_errors=True)
        Manifest.write(writable_folder(parts), kind="encode-parts", fingerprint=mark)
    order = reading_order(slide, tiles.boxes, tiles.tile_px)
    size = max(64, _CHUNK_BYTES // (tiles.tile_px**2 * 3) // 64 * 64)
    chunks = [slice(start, min(start + size, len(tiles))) for start in range(0, len(tiles), size)]
    done = [_load_part(parts / f"{i:05d}.npy", c.stop - c.start) for i, c in enumerate(chunks)]
    count = sum(len(part) for part in done if part is not None)
    if advance is not None:
        advance(count, len(tiles))
    batches = [
        (i, slice(start, min(start + config.batch_size, chunk.stop)))
        for i, chunk in enumerate(chunks)
        if done[i] is None
        for start in range(chunk.start, chunk.stop, config.batch_size)
    ]
    pending: list[np.ndarray] = []
    for (i, rows), images in _prefetched(slide, tiles, order, batches, config.readers, clock):
        with clock("encode"):
            pending.append(encoder(images).cpu().numpy())
        count += rows.stop - rows.start
        if advance is not None:
            advance(count, len(tiles))
        if rows.stop == chunks[i].stop:
            part, pending = np.concatenate(pending), []
            with clock("store"), atomic_path(parts / f"{i:05d}.npy") as temporary:
                np.save(temporary, part, allow_pickle=False)
            done[i] = part
    read = np.concatenate([part for part in done if part is not None])
    features = np.empty_like(read)
    features[order] = read
    return features


def _prefetched(
    slide: Slide,
    tiles: Tiles,
    order: np.ndarray,
    batches: list[tuple[int, slice]],
    readers: int,
    clock: _Clock,
) -> Iterator[tuple[tuple[int, slice], np.ndarray]]:
    """Pixels of each batch of rows of ``order``; those ahead are decoded while the encoder works."""

    def read(rows: slice) -> np.ndarray:
        return read_boxes(slide, tiles.boxes[order[rows]], tiles.tile_px)

    slide.reader.reader  # noqa: B018  opened here, once, before threads ask for it
    ahead = readers + 1
    with ThreadPoolExecutor(readers, thread_name_prefix="decode") as pool:
        queue = [pool.submit(read, rows) for _, rows in batches[:ahead]]
        try:
            for n, batch in enumerate(batches):
                with clock("read"):
                    images = queue.pop(0).result()
                if n + ahead < len(batches):
                    queue.append(pool.submit(read, batches[n + ahead][1]))
                yield batch, images
        finally:
            for future in queue:
                future.cancel()


def _load_part(path: Path, rows: int) -> np.ndarray | None:
    try:
        part = np.load(path, allow_pickle=False)
    except DAMAGED:
        return None
    return part if part.ndim == 2 and len(part) == rows else None


class _Clock:
    """Seconds per stage of the thread that works on a slide: ``with clock("read"): …``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
