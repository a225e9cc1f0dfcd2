"""A prepared section from a file, checked in every slot that a model reads before anything is computed from it."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.core.reading.text import clean
from morphogen.expression.data import check_barcodes, check_embeddings, facts

_FIX = "Run `morphogen expression prepare` on its folder again"


class _Prepared(BaseModel):
    """``uns["morphogen"]["prepare"]``: how the embeddings were made."""

    model_config = ConfigDict(extra="allow")

    encoder: dict[str, Any]
    encoder_identity: str
    field: str
    field_um: float = Field(ge=0, allow_inf_nan=False)
    field_px: int = Field(gt=0)
    near: int = Field(gt=0)
    region: int = Field(gt=0)
    orientations: int = Field(ge=1, le=8)


def check_prepared(section: ad.AnnData, where: object) -> ad.AnnData:
    """The section, when it is one that was prepared and every slot has the shape, type and range it must have.

    ``uns["morphogen"]`` facts and settings; ``obsm`` spatial (N, 2), embedding (N, D), embedding_views (N, V, D), all
    finite; neighbours (N, k) whole numbers in −1 … N − 1, itself first; unique names of spots; counts that are finite
    numbers. Raises :class:`InputError` for the first that is not.
    """
    noted = section.uns.get("morphogen")
    prepared = noted.get("prepare") if isinstance(noted, dict) else None
    if prepared is None or "embedding" not in section.obsm:
        raise InputError(
            "this is not a prepared section",
            where=where,
            fix="Run `morphogen expression prepare` on its folder first",
        )
    facts(section, where)
    try:
        settings = _Prepared.model_validate(_plain(prepared))
    except (ValidationError, TypeError, ValueError) as error:
        raise InputError(
            f"what it says of its preparation is damaged ({_first(error)})", where=where, fix=_FIX
        ) from None
    check_barcodes([str(name) for name in section.obs_names], where)
    count = section.n_obs
    centres = _array(section, "spatial", 2, "iuf", where)
    if centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise InputError("obsm['spatial'] does not hold x and y of every spot", where=where, fix=_FIX)
    embedding = _array(section, "embedding", 2, "f", where)
    check_embeddings(embedding, where)
    if "embedding_views" in section.obsm:
        views = _array(section, "embedding_views", 3, "f", where)
        if views.shape[2] != embedding.shape[1]:
            raise InputError(
                f"the views are {views.shape[2]} wide, the embedding {embedding.shape[1]}",
                where=where,
                fix=_FIX,
            )
        check_embeddings(views, where)
    near = _array(section, "neighbours", 2, "iu", where)
    if near.shape[1] < max(settings.near, 1):
        raise InputError(
            f"there are {near.shape[1]} neighbours of each spot, not {settings.near}", where=where, fix=_FIX
        )
    out = near[(near < -1) | (near >= count)]
    if len(out):
        raise InputError(
            f"a neighbour is spot {int(out[0])}, but there are {count} spots", where=where, fix=_FIX
        )
    if not np.array_equal(near[:, 0], np.arange(count)):
        raise InputError("the first neighbour of a spot is not itself", where=where, fix=_FIX)
    _check_values(section, where)
    return section


def _array(section: ad.AnnData, key: str, axes: int, kinds: str, where: object) -> np.ndarray:
    value = section.obsm.get(key)
    if not isinstance(value, np.ndarray) or value.ndim != axes or value.dtype.kind not in kinds:
        found = "is missing" if value is None else f"is {getattr(value, 'dtype', type(value).__name__)}"
        shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
        raise InputError(f"obsm['{key}'] {found}{shape}, not numbers with {axes} axes", where=where, fix=_FIX)
    return value


def predicted(result: ad.AnnData, where: object) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean (N, G) and samples (N, S, G) or ``None`` of a prediction in AnnData: ``layers["pred_mean"]`` and
    ``obsm["pred_samples"]``, numbers that are finite. Raises :class:`InputError`."""
    check_barcodes([str(name) for name in result.obs_names], where)
    if not result.var_names.is_unique:
        twice = result.var_names[result.var_names.duplicated()][0]
        raise InputError(f"the gene '{twice}' comes more than once", where=where)
    mean = result.layers.get("pred_mean")
    if mean is None:
        raise InputError("there is no layer 'pred_mean'", where=where)
    mean = mean.toarray() if sparse.issparse(mean) else np.asarray(mean)
    samples = result.obsm.get("pred_samples")
    for name, value, axes in (("layers['pred_mean']", mean, 2), ("obsm['pred_samples']", samples, 3)):
        if value is None:
            continue
        value = np.asarray(value)
        if value.ndim != axes or value.shape[-1] != result.n_vars or value.dtype.kind not in "iuf":
            raise InputError(
                f"{name} is {value.dtype} of shape {value.shape}, not numbers for {result.n_obs} spots and "
                f"{result.n_vars} genes",
                where=where,
            )
        if not np.isfinite(value).all():
            raise InputError(f"{name} holds NaN or infinite values", where=where)
    return mean, None if samples is None else np.asarray(samples, np.float32)


def _check_values(section: ad.AnnData, where: object) -> None:
    x = section.X
    if x is None or not section.n_vars:
        return
    data = x.data if sparse.issparse(x) else np.asarray(x)
    if data.dtype.kind not in "iuf":
        raise InputError("X holds text or objects, not counts", where=where, fix=_FIX)
    if not np.isfinite(data).all() or (data < 0).any():
        raise InputError(
            "X holds values that are no counts (negative, NaN or infinite)", where=where, fix=_FIX
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return clean(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}")[:120]
    return clean(error)[:120]
