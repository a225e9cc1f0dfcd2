"""From images to prepared sections: one .h5ad with counts, embeddings and neighbours per section.

Slots beside those of :mod:`morphogen.expression.data`: ``obsm["embedding"]`` (N, D) of the upright field,
``obsm["embedding_views"]`` (N, 7, D) of its other orientations where the encoder tells them apart,
``obsm["neighbours"]`` (N, 49) nearest spots, itself first, −1 = none; ``uns["morphogen"]["prepare"]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import content_hash, writable_folder
from morphogen.core.fingerprints import fingerprint, fingerprints
from morphogen.core.progress import progress
from morphogen.core.reading.listing import list_files
from morphogen.core.writing.h5ad import open_h5ad
from morphogen.core.writing.hdf5 import write_h5ad
from morphogen.core.writing.locks import file_lock, locks_file
from morphogen.expression.config import PrepareConfig
from morphogen.expression.data import (
    check_embeddings,
    check_inside,
    facts,
    log,
    resolve_mpp,
    set_facts,
)
from morphogen.expression.sections.checked import check_prepared
from morphogen.expression.sections.neighbours import nearest_spots
from morphogen.expression.sections.readers import Source, find_sections, read_section
from morphogen.slides import Encoder, Slide, crop_fields, dihedral, get_encoder
from morphogen.slides.exchange.hest import patch_index
from morphogen.slides.formats.spatial import open_image

FIELD_UM = 112.0
INVARIANT = {"texture"}  # kinds of encoder for which the 8 orientations are one
HIRES_PX, LOWRES_PX = 2000, 600


def prepare_sections(
    folder: Path | str,
    out: Path | str,
    config: PrepareConfig | None = None,
    *,
    sections: Iterable[str] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    encoder: Encoder | None = None,
) -> list[Path]:
    """Prepare the sections of a folder (all, or those named); one ``<section>.h5ad`` each in ``out``.

    A section that is there already, made from the same files with the same settings and encoder, is skipped, so a
    killed run goes on where it was. Returns the files, in order. ``encoder``: that of ``config``, where it is loaded.
    """
    config = config or PrepareConfig()
    out = writable_folder(out)
    found = find_sections(folder, config.data)
    if sections is not None:
        from morphogen.core.errors import nearest

        known = {source.section: source for source in found}
        for name in sections:
            if name not in known:
                raise InputError(f"there is no section '{name}'.{nearest(name, known)}", where=folder)
        found = [known[name] for name in sections]
    if encoder is None:
        encoder = get_encoder(config.encoder, config.weights, device=device, precision=precision)
    written = []
    for source in found:
        path = out / f"{source.section}.h5ad"
        with file_lock(path):
            section = read_section(source, config.data)
            key = prepare_key(source, facts(section).image, config, encoder)
            if stored_key(path) == key:
                log.info("%s: already prepared", path)
            else:
                section = prepare_section(section, config, encoder, patches=_patches_of(source))
                section.uns["morphogen"]["prepare"]["key"] = key
                save_section(section, path)
        written.append(path)
    return written


def prepare_section(
    section: ad.AnnData, config: PrepareConfig, encoder: Encoder, *, patches: Path | None = None
) -> ad.AnnData:
    """Embed a section's spots and index their neighbours; checks coordinates and µm/px against the image.

    patches: HEST-1k's ``patches/<id>.h5``, used when the section has no image; spots without a patch (outside the
    tissue) are left out, and said.
    """
    f = facts(section)
    if f.image:
        slide = open_image(f.image)
        check_inside(section.obsm["spatial"], slide.width, slide.height, f.section)
        stated = f.mpp or slide.mpp or None
        mpp, source = resolve_mpp(
            stated, f.pitch_px, f.pitch_um or None, trust=config.data.trust_mpp, where=f.section
        )
        slide.mpp = mpp
        x, y = slide.bounds[:2]
        set_facts(
            section,
            replace(f, mpp=mpp, mpp_source=f.mpp_source or source, origin_x=float(x), origin_y=float(y)),
        )
        embed(section, slide_fields(section, slide, config), config, encoder)
        add_images(section, slide)
    elif patches is not None:
        section, rows = _with_patches(section, patches)
        mpp, source = resolve_mpp(
            f.mpp or None, f.pitch_px, f.pitch_um or None, trust=config.data.trust_mpp, where=f.section
        )
        set_facts(section, replace(f, mpp=mpp, mpp_source=f.mpp_source or source))
        embed(section, _patch_fields(patches, rows, config), config, encoder)
    else:
        raise InputError(
            "there is no H&E image of this section",
            where=f.section,
            fix="Give its folder: --data.images FOLDER",
        )
    return section


def embed(
    section: ad.AnnData,
    fields: Iterator[np.ndarray],
    config: PrepareConfig,
    encoder: Encoder,
    neighbours: np.ndarray | None = None,
) -> None:
    """Fill the embedding and neighbour slots from batches of fields (B, px, px, 3) in row order.

    neighbours: (N, k) where they are found otherwise than by distance alone.
    """
    f = facts(section)
    invariant = encoder.spec.kind in INVARIANT
    views = config.orientations == "8" or (config.orientations == "auto" and not invariant)
    upright, turned = [], []
    with progress.bar(section.n_obs, f"{f.section}: spots") as bar:
        for batch in fields:
            if views:
                all_views = np.ascontiguousarray(dihedral(batch)).reshape(-1, *batch.shape[1:])
                values = encoder(all_views).cpu().numpy().reshape(len(batch), 8, -1)
                upright.append(values[:, 0])
                turned.append(values[:, 1:])
            else:
                upright.append(encoder(batch).cpu().numpy())
            bar.advance(len(batch))
    section.obsm["embedding"] = np.concatenate(upright).astype(np.float32)
    if turned:
        section.obsm["embedding_views"] = np.concatenate(turned).astype(np.float32)
    check_embeddings(section.obsm["embedding"], f.section)
    if neighbours is None:
        index_neighbours(section, config)
    else:
        section.obsm["neighbours"] = neighbours
    section.uns["morphogen"]["prepare"] = {
        "encoder": {
            k: v for k, v in encoder.spec.to_dict().items() if isinstance(v, str | int | float | bool)
        },
        "encoder_identity": encoder.identity(),
        "field": config.field,
        "field_um": field_um(section, config),
        "field_px": config.field_px,
        "near": config.near,
        "region": config.region,
        "orientations": 8 if turned else 1,
        "invariant": invariant,
    }


def index_neighbours(section: ad.AnnData, config: PrepareConfig) -> None:
    """``obsm["neighbours"]``: the wider of the two neighbourhoods; the nearer one is its first columns."""
    section.obsm["neighbours"] = nearest_spots(section.obsm["spatial"], max(config.near, config.region))


def field_um(section: ad.AnnData, config: PrepareConfig) -> float:
    """Side of a spot's field in µm under these settings."""
    f = facts(section)
    if config.field == "112um":
        return FIELD_UM
    return max(224.0, f.spot_diameter_px) * f.mpp


def slide_fields(section: ad.AnnData, slide: Slide, config: PrepareConfig) -> Iterator[np.ndarray]:
    centres = section.obsm["spatial"]
    side = field_um(section, config)
    for start in range(0, len(centres), config.batch_size):
        yield crop_fields(slide, centres[start : start + config.batch_size], side, config.field_px)


# --- HEST-1k patches --------------------------------------------------------------------------------------


def _patches_of(source: Source) -> Path | None:
    path = source.path.parents[1] / "patches" / f"{source.section}.h5" if source.kind == "hest" else None
    return path if path is not None and path.is_file() else None


def _with_patches(section: ad.AnnData, path: Path) -> tuple[ad.AnnData, np.ndarray]:
    """The spots that have a patch, and the row of each one's patch. Joined by barcode, never by position."""
    barcodes, corners = patch_index(path)
    row = {barcode: i for i, barcode in enumerate(barcodes)}
    have = [name for name in section.obs_names if name in row]
    if not have:
        raise InputError("no barcode of the section has a patch", where=path)
    if len(have) < section.n_obs:
        log.warning(
            "%s: %d of %d spots have no patch and are left out",
            path,
            section.n_obs - len(have),
            section.n_obs,
        )
    section = section[have].copy()
    rows = np.array([row[name] for name in have])
    # `coords` are top-left corners and spot positions are centres: where they coincide one of them is not.
    offset = np.median(section.obsm["spatial"] - corners[rows], axis=0)
    if (np.abs(offset) < 2.0).all():
        raise InputError(
            "patch corners and spot centres coincide, so one of the two is not what it should be",
            where=path,
            fix="obsm['spatial'] must hold spot CENTRES and coords the TOP-LEFT corners of patches",
        )
    return section, rows


def _patch_fields(path: Path, rows: np.ndarray, config: PrepareConfig) -> Iterator[np.ndarray]:
    from PIL import Image

    with h5py.File(path) as file:
        images = file["img"]
        for start in range(0, len(rows), config.batch_size):
            batch = np.stack([images[i] for i in rows[start : start + config.batch_size]])
            if batch.shape[1] != config.field_px:
                size = (config.field_px, config.field_px)
                batch = np.stack(
                    [np.asarray(Image.fromarray(b).resize(size, Image.Resampling.LANCZOS)) for b in batch]
                )
            yield batch


# --- images for scanpy and squidpy ------------------------------------------------------------------------


def add_images(section: ad.AnnData, slide: Slide) -> None:
    """``uns["spatial"]`` with ``hires`` and ``lowres`` images and scale factors, as scanpy and squidpy plot them."""
    f = facts(section)
    longer = max(slide.width, slide.height)
    images, factors = {}, {"spot_diameter_fullres": spot_diameter(section)}
    for name, px in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        image = slide.overview(max(1.0, longer / px))
        images[name] = image
        factors[f"tissue_{name}_scalef"] = image.shape[1] / slide.width
    section.uns["spatial"] = {
        f.section: {"images": images, "scalefactors": factors, "metadata": {"source_image_path": f.image}}
    }


def spot_diameter(section: ad.AnnData) -> float:
    """In level-0 pixels; where the file does not say, half the pitch (100 µm of 200 on ST, 55 of 100 on Visium)."""
    f = facts(section)
    return f.spot_diameter_px or f.pitch_px * 0.5


# --- files ------------------------------------------------------------------------------------------------


def prepare_key(source: Source, image: str, config: PrepareConfig, encoder: Encoder) -> str:
    """Identity of a prepared section: contents of its files, settings and encoder, never a folder's name."""
    parts: list[Any] = [source.section, config.to_dict(), encoder.identity(), encoder.spec.to_dict()]
    parts += [fingerprints(path) if path.is_dir() else fingerprint(path) for path in source.files()]
    patches = _patches_of(source)
    shown = (fingerprints(image) if Path(image).is_dir() else fingerprint(image)) if image else ""
    parts += [shown, fingerprint(patches) if patches else ""]
    return content_hash(*parts)


def stored_key(path: Path) -> str | None:
    """The key a prepared file was written under, without loading it; ``None`` when there is none."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path) as file:
            return file["uns/morphogen/prepare/key"].asstr()[()]
    except (OSError, KeyError, TypeError):
        return None


@locks_file("path")
def save_section(section: ad.AnnData, path: Path | str) -> Path:
    """Write a section whole or not at all."""
    return write_h5ad(section, path)


def load_section(path: Path | str) -> ad.AnnData:
    """A prepared section; checks that it is one and that all of it can be used."""
    return check_prepared(open_h5ad(path), path)


def load_sections(folder: Path | str, names: Iterable[str] | None = None) -> list[ad.AnnData]:
    """The prepared sections of a folder, all or those named; all must have one encoder and one field."""
    root = Path(folder)
    if root.is_file():
        return [load_section(root)]
    paths = {path.stem: path for path in list_files(root, "*.h5ad")}
    if not paths:
        raise InputError(
            "holds no prepared sections (*.h5ad)", where=root, fix="Run `morphogen expression prepare`"
        )
    from morphogen.core.errors import nearest

    chosen = list(names) if names is not None else list(paths)
    for name in chosen:
        if name not in paths:
            raise InputError(f"there is no prepared section '{name}'.{nearest(name, paths)}", where=root)
    sections = [load_section(paths[name]) for name in chosen]
    check_same_encoder(sections)
    return sections


def encoder_of(section: ad.AnnData) -> dict[str, Any]:
    """What decides a section's embeddings: encoder, its weights, field."""
    p = section.uns["morphogen"]["prepare"]
    return {
        "name": str(dict(p["encoder"]).get("name", "")),
        "identity": str(p["encoder_identity"]),
        "width": int(section.obsm["embedding"].shape[1]),
        "field": str(p["field"]),
        "field_px": int(p["field_px"]),
    }


def check_same_encoder(sections: list[ad.AnnData]) -> None:
    """Embeddings of different encoders or fields cannot be mixed."""
    first = encoder_of(sections[0])
    for section in sections[1:]:
        other = encoder_of(section)
        for key, value in first.items():
            if other[key] != value:
                raise InputError(
                    f"its {key} is {other[key]}, that of section {facts(sections[0]).section} is {value}",
                    where=facts(section).section,
                    fix="Prepare all sections with the same encoder and settings",
                )


def section_facts_dict(section: ad.AnnData) -> dict[str, Any]:
    """The facts as plain values, for result files."""
    return asdict(facts(section))
