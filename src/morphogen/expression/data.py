"""A section: one AnnData of counts with spot centres, checked before anything is computed from it.

Slots: ``X`` raw counts (CSR), ``obs_names`` barcodes, ``obsm["spatial"]`` spot CENTRES in level-0 pixels,
``obs["total_counts"]`` over all genes, ``uns["morphogen"]`` the facts of :class:`SectionFacts`.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from morphogen.core.errors import InputError
from morphogen.core.names import path_name

log = logging.getLogger("morphogen.expression")

PITCH_UM = {"ST": 200.0, "Visium": 100.0}
WARN_MPP, REFUSE_MPP = 1.10, 1.30  # ratio of µm/px to what the spot pitch says


@dataclass(frozen=True)
class SectionFacts:
    """What is known of a section beside its numbers; kept in ``uns["morphogen"]["section"]``."""

    section: str
    patient: str = ""  # "" = not known, and then no split over it may be called held-out patient
    image: str = ""  # path of the H&E
    mpp: float = 0.0  # µm per level-0 pixel; 0 = not known yet
    mpp_source: str = ""
    technology: str = ""
    pitch_um: float = 0.0
    pitch_px: float = 0.0
    spot_diameter_px: float = 0.0
    origin_x: float = 0.0  # level-0 pixel that QuPath calls 0: the corner of OpenSlide's bounds
    origin_y: float = 0.0
    values: str = "counts"

    def __post_init__(self) -> None:
        path_name(self.section, "section", suffix="_measured-predicted.png")


def facts(section: ad.AnnData, where: object = None) -> SectionFacts:
    """The facts of a section read by this room; :class:`InputError` for any other AnnData, and for facts that are
    no names or no sizes."""
    noted = section.uns.get("morphogen")
    found = noted.get("section") if isinstance(noted, dict) else None
    if not isinstance(found, dict):
        raise InputError(
            "this AnnData was not read as a section",
            where=where,
            fix="Read it with morphogen.expression.read_sections",
        )
    known = SectionFacts.__dataclass_fields__
    values = {k: _plain(v) for k, v in found.items() if k in known}
    for key, value in values.items():
        number = known[key].type == "float"  # annotations are text in this file
        if number and not (isinstance(value, int | float) and 0 <= value < float("inf")):
            raise InputError(
                f"its {key} is {str(value)[:40]!r}, not a size", where=where or found.get("section")
            )
        if not number and not isinstance(value, str):
            raise InputError(f"its {key} is {str(value)[:40]!r}, not text", where=where)
    if not values.get("section"):
        raise InputError("the section has no name", where=where)
    return SectionFacts(**values)


def set_facts(section: ad.AnnData, value: SectionFacts) -> None:
    section.uns.setdefault("morphogen", {})["section"] = asdict(value)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


# --- checks -----------------------------------------------------------------------------------------------


def check_counts(matrix: Any, values: str, where: object) -> sparse.csr_matrix:
    """The matrix as CSR float32 of non-negative counts.

    Whole numbers are what a sequencer gives; negative values are an error and fractional ones are asked about,
    because log-normalised or smoothed values under the name of counts spoil every target computed from them.
    ``values="log1p"`` undoes a logarithm and allows fractions.
    """
    x = sparse.csr_matrix(matrix).astype(np.float32)
    data = x.data
    if not np.isfinite(data).all():
        raise InputError(
            f"the counts hold {int((~np.isfinite(data)).sum())} NaN or infinite values", where=where
        )
    if (data < 0).any():
        raise InputError(
            f"the counts hold {int((data < 0).sum())} negative values, so they are scaled or centred, not counts",
            where=where,
            fix="Give the raw matrix, e.g. --data.layer counts",
        )
    if values == "log1p":
        x.data = np.expm1(data)
        return x
    fractional = int((data != np.round(data)).sum())
    if fractional:
        kind = "log-normalised" if data.max() < 20 else "normalised or smoothed"
        raise InputError(
            f"{fractional} of {len(data)} stored values are not whole numbers (largest {data.max():.3g}): they "
            f"look {kind}, not like counts",
            where=where,
            fix="Give the raw counts (--data.layer NAME), or say that these are to be used: --data.values log1p",
        )
    return x


def check_barcodes(names: list[str], where: object) -> None:
    """Refuse duplicate barcodes: rows could not be joined."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    twice = [name for name, n in seen.items() if n > 1]
    if twice:
        raise InputError(
            f"{len(twice)} barcodes occur more than once, the first is '{twice[0]}'",
            where=where,
            fix="Make them unique, e.g. by a section prefix",
        )


def merge_duplicate_genes(section: ad.AnnData, where: object = None) -> ad.AnnData:
    """Sum the columns of genes that share a name (10x files have a few); which ones is said in the log."""
    names = section.var_names
    if names.is_unique:
        return section
    twice = list(dict.fromkeys(names[names.duplicated()].astype(str)))
    log.warning(
        "%s: %d gene names occur more than once (%s%s); their counts are summed",
        where or "section",
        len(twice),
        ", ".join(twice[:3]),
        " …" if len(twice) > 3 else "",
    )
    unique, index = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    fold = sparse.csr_matrix((np.ones(len(index)), (np.arange(len(index)), index)))
    merged = ad.AnnData(sparse.csr_matrix(section.X @ fold).astype(np.float32), obs=section.obs)
    merged.var_names = unique
    for key in section.obsm:
        merged.obsm[key] = section.obsm[key]
    merged.uns = section.uns
    return merged


def check_inside(coords: np.ndarray, width: int, height: int, where: object) -> None:
    """Every spot centre must lie in the image."""
    if not np.isfinite(coords).all():
        raise InputError(
            f"{int((~np.isfinite(coords).all(axis=1)).sum())} spots have no coordinates", where=where
        )
    outside = (coords < 0).any(axis=1) | (coords[:, 0] >= width) | (coords[:, 1] >= height)
    if outside.any():
        x, y = coords.max(axis=0)
        raise InputError(
            f"{int(outside.sum())} of {len(coords)} spots lie outside the image: coordinates go to x {x:.0f}, "
            f"y {y:.0f}, the image has {width} × {height} px",
            where=where,
            fix="The coordinates may belong to another resolution: give --data.coordinate_scale",
        )


def check_places(section: ad.AnnData, where: object) -> None:
    """Every spot has a place of its own: warn where some share one, :class:`InputError` where all do."""
    coords = np.asarray(section.obsm["spatial"], dtype=np.float64)
    _, group, counts = np.unique(coords, axis=0, return_inverse=True, return_counts=True)
    if len(coords) > 1 and len(counts) == 1:
        raise InputError(
            f"all {len(coords)} spots have the same coordinates, x {coords[0, 0]:g}, y {coords[0, 1]:g}",
            where=where,
            fix="Give the centre of each spot in pixels of the image",
        )
    shared = np.flatnonzero(counts[group.ravel()] > 1)
    if len(shared):
        log.warning(
            "%s: %d of %d spots have the coordinates of another spot (first: '%s'); a file must hold one section",
            *(where, len(shared), len(coords), section.obs_names[shared[0]]),
        )


# --- pitch and µm/px --------------------------------------------------------------------------------------


def pitch_in_pixels(coords: np.ndarray, grid: np.ndarray | None, technology: str) -> float:
    """Distance of neighbouring spots in pixels.

    From the array positions where they are known (N, 2: column, row), by a least-squares fit, which holes in the
    tissue cannot mislead; else the median distance to the nearest spot. On Visium's hexagonal array one column
    step is half a pitch and one row step √3/2 of it. 0 = not known (one spot).
    """
    if grid is not None and len(grid) >= 6 and (np.ptp(grid, axis=0) > 0).all():
        design = np.column_stack([grid.astype(np.float64), np.ones(len(grid))])
        solution = np.linalg.lstsq(design, coords, rcond=None)[0]
        column, row = np.linalg.norm(solution[:2], axis=1)
        if technology == "Visium":
            column, row = column * 2, row * 2 / np.sqrt(3)
        if 0.8 < column / row < 1.25:
            return float((column + row) / 2)
    places = np.unique(coords, axis=0)  # spots that share a place say nothing of the pitch
    if len(places) < 2:
        return 0.0  # not known
    nearest = cKDTree(places).query(places, 2)[0][:, 1]
    return float(np.median(nearest))


def resolve_mpp(
    stated: float | None, pitch_px: float, pitch_um: float | None, *, trust: bool, where: object
) -> tuple[float, str]:
    """µm/px and where it came from; compared with the spot pitch where both are known.

    Warns past 10 % and refuses past 30 %: µm/px wrong by 1.5 to 4 times is a known trap of public collections,
    and every field cut with it shows the wrong piece of tissue.
    """
    from_pitch = pitch_um / pitch_px if pitch_um and pitch_px > 0 else None
    if stated is None:
        if from_pitch is None:
            if pitch_px <= 0:
                raise InputError(
                    "µm/px is not known, and one spot has no pitch to tell it",
                    where=where,
                    fix="Give --data.mpp",
                )
            raise InputError("µm/px is not known", where=where, fix="Give --data.mpp, or --data.pitch_um")
        return from_pitch, "spot pitch"
    if from_pitch is not None:
        ratio = max(stated / from_pitch, from_pitch / stated)
        message = (
            f"{stated:.4g} µm/px contradicts the spots: {pitch_px:.1f} px apart where the array has {pitch_um:g} µm "
            f"means {from_pitch:.4g} µm/px"
        )
        if ratio > REFUSE_MPP and not trust:
            raise InputError(
                message,
                where=where,
                fix=f"Give --data.mpp {from_pitch:.4g}, or --data.pitch_um, or --data.trust_mpp true",
            )
        if ratio > WARN_MPP:
            log.warning("%s: %s", where, message)
    return stated, "stated"


# --- genes ------------------------------------------------------------------------------------------------


def gene_matrix(section: ad.AnnData, genes: list[str], *, where: str | None = None) -> np.ndarray:
    """Counts of the genes in this order, (N, G) float32; :class:`InputError` names those a section lacks."""
    index = section.var_names.get_indexer(genes)
    missing = [gene for gene, i in zip(genes, index, strict=True) if i < 0]
    if missing:
        name = where or facts(section).section
        some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise InputError(
            f"{len(missing)} of {len(genes)} panel genes are not measured: {some}",
            where=name,
            fix="Use a panel that all sections share, or check that gene names are of one kind (symbols or Ensembl)",
        )
    x = section.X[:, index]
    return np.asarray(x.todense() if sparse.issparse(x) else x, dtype=np.float32)


def total_counts(section: ad.AnnData) -> np.ndarray:
    """Library size of each spot over ALL genes, (N,) float64."""
    return np.asarray(section.X.sum(axis=1), dtype=np.float64).ravel()


def check_embeddings(values: np.ndarray, where: object) -> None:
    """Embeddings must be finite."""
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise InputError(
            f"the embeddings of {int(bad.sum())} of {len(values)} spots hold NaN or infinite values (first: row "
            f"{int(np.flatnonzero(bad)[0])})",
            where=where,
            fix="Encode the section again",
        )
