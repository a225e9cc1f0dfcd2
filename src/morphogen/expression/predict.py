"""Prediction: shards of spots, all samples in large batches, resumable, in memory bounded by a shard.

Noise is a function of seed, section, barcode and sample, so shards, batches and restarts do not move a number. The
result is an AnnData over the panel genes with the layers ``pred_mean``, ``pred_std``, ``pred_q05``, ``pred_q95`` in
the model's transform.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import anndata as ad
import numpy as np
from scipy import sparse

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import atomic_path, content_hash
from morphogen.core.progress import progress
from morphogen.core.provenance import versions
from morphogen.core.writing.hdf5 import write_h5ad
from morphogen.core.writing.locks import locks_file
from morphogen.core.writing.places import own_place
from morphogen.expression.config import ExpressionConfig, PredictConfig
from morphogen.expression.data import facts, log
from morphogen.expression.recipes.plan import Plan
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.prepare import encoder_of
from morphogen.expression.sections.tables import tabulate
from morphogen.expression.sections.transforms import Transform
from morphogen.tasks.shards import Shards


class Predictor(Protocol):
    """What prediction needs of a model; :class:`~morphogen.expression.ExpressionModel` is one."""

    head: Any
    config: ExpressionConfig
    panel: Panel
    transform: Transform
    encoder: dict[str, Any]
    training: dict[str, Any]
    prepared: dict[str, Any]

    @property
    def identity(self) -> str: ...

    def sampler(self, precision: str) -> tuple[Any, str]: ...

    def expect(self, calls: float) -> None: ...


@locks_file()
def predict_section(
    model: Predictor,
    section: ad.AnnData,
    config: PredictConfig,
    *,
    precision: str = "fp32",
    out: Path | str | None = None,
) -> ad.AnnData:
    """Predict every spot of a prepared section.

    out: file of the result; its shards lie in ``<out>.shards`` until it is complete, and a killed run goes on from
    them. None keeps everything in memory. Raises :class:`InputError` where the section does not fit the model.
    """
    check_section(model, section)
    check_panel(model, section)
    _check_pitch(model, section)
    table = tabulate(section)
    head, autocast = model.sampler(precision)
    plan = Plan(head, len(model.panel), table, config, autocast)
    model.expect(plan.calls)
    key = content_hash(
        model.identity,
        config.to_dict(),
        precision,
        (table.section, table.patient, list(table.barcodes), table.embedding, table.coords),
    )
    shards = Shards(out, key) if out is not None else None
    genes, n = len(model.panel), len(table)
    layers = {name: np.empty((n, genes), dtype=np.float32) for name in plan.layers}
    kept: AbstractContextManager[Any] = nullcontext(None)
    if config.keep_samples == "obsm" and config.draws:
        kept = nullcontext(np.empty((n, config.draws, genes), dtype=np.float16))
    elif config.keep_samples == "zarr" and config.draws:
        kept = _zarr_samples(out, n, config.draws, genes, key)
    with kept as keep, progress.bar(n, f"{table.section}: spots") as bar:
        for number, rows in enumerate(plan.shards()):
            values = shards.read(number) if shards is not None else None
            if values is None:
                values = plan.shard(rows, want_samples=keep is not None)
                if shards is not None:
                    shards.write(number, values)
            for name in layers:
                layers[name][rows] = values[name]
            if keep is not None:
                _put(keep, rows, values["samples"])
            bar.advance(len(rows))
    result = _result(model, section, config, plan, layers, precision)
    if isinstance(keep, np.ndarray):
        result.obsm["pred_samples"] = keep
    if out is not None:
        write_h5ad(result, out)
        assert shards is not None
        shards.remove()
    return result


def check_section(model: Predictor, section: ad.AnnData) -> None:
    """Refuse a section whose embeddings are not those the model was trained on."""
    found, name = encoder_of(section), facts(section).section
    if found["width"] != model.encoder["width"]:
        raise InputError(
            f"its embeddings have width {found['width']} ({found['name']}), the model takes "
            f"{model.encoder['width']} ({model.encoder['name']})",
            where=name,
            fix=f"Prepare it with --encoder {model.encoder['name']}",
        )
    for key in ("identity", "field"):
        if model.encoder.get(key) and found[key] != model.encoder[key]:
            raise InputError(
                f"its embeddings come from another {'encoder' if key == 'identity' else 'field'} "
                f"({found['name']}, {found[key]}) than the model's ({model.encoder['name']}, {model.encoder[key]})",
                where=name,
                fix="Prepare it with the model's encoder and settings",
            )


def check_panel(model: Predictor, section: ad.AnnData) -> list[str]:
    """Panel genes that a measured section lacks; an error when it measures none of them."""
    missing = [gene for gene in model.panel.genes if gene not in section.var_names]
    if section.n_vars and len(missing) == len(model.panel):
        raise InputError(
            f"it measures none of the model's {len(model.panel)} panel genes ({', '.join(model.panel.genes[:3])} …)",
            where=facts(section).section,
            fix="Check that gene names are of the kind the model was trained with (symbols or Ensembl ids)",
        )
    return missing


def _check_pitch(model: Predictor, section: ad.AnnData) -> None:
    trained = float(model.prepared.get("pitch_um", 0.0) or 0.0)
    f = facts(section)
    here = f.pitch_px * f.mpp
    if trained and here and not 0.75 < here / trained < 1.34:
        log.warning(
            "%s: spots are %.0f µm apart, the model was trained at %.0f µm: neighbourhoods are of another size",
            *(f.section, here, trained),
        )


# --- samples that are kept ---------------------------------------------------------------------------------


@contextmanager
def _zarr_samples(out: Path | str | None, n: int, k: int, genes: int, key: str) -> Iterator[Any]:
    """The array of all samples beside the result; it has its name only when all of them are in it."""
    import zarr

    if out is None:
        raise ConfigError(
            "samples in zarr need a result file", where="--keep-samples", fix="Give --out, or use obsm"
        )
    path = Path(out)
    with atomic_path(own_place(path.with_name(path.stem + ".samples.zarr"))) as temporary:
        store = zarr.open_array(
            temporary,
            mode="w",
            shape=(n, k, genes),
            chunks=(min(n, 512) or 1, k, genes),
            dtype="float16",
        )
        store.attrs.update({"axes": ["spot", "sample", "gene"], "plan": key})
        yield store


def _put(keep: Any, rows: np.ndarray, samples: np.ndarray) -> None:
    if isinstance(keep, np.ndarray):
        keep[rows] = samples
    else:
        keep.set_orthogonal_selection((rows, slice(None), slice(None)), samples)


# --- the result -------------------------------------------------------------------------------------------


def _result(
    model: Predictor,
    section: ad.AnnData,
    config: PredictConfig,
    plan: Plan,
    layers: dict[str, np.ndarray],
    precision: str,
) -> ad.AnnData:
    genes = list(model.panel.genes)
    measured = [gene in section.var_names for gene in genes] if section.n_vars else [False] * len(genes)
    if any(measured):
        index = section.var_names.get_indexer(genes)
        x = sparse.csc_matrix(section.X)[:, np.maximum(index, 0)]
        x = sparse.csr_matrix(x.multiply(np.asarray(measured, dtype=np.float32)[None]))
    else:
        x = layers["pred_mean"].copy()
    result = ad.AnnData(x, obs=section.obs.copy())
    result.var_names = genes
    result.var["measured"] = measured
    for name, values in layers.items():
        result.layers[name] = values
    result.obsm["spatial"] = np.asarray(section.obsm["spatial"])
    if "spatial" in section.uns:
        result.uns["spatial"] = section.uns["spatial"]
    training = model.training
    tested = facts(section)
    result.uns["morphogen"] = {
        "section": section.uns["morphogen"]["section"],
        "prediction": {
            "X": "measured counts"
            if any(measured)
            else "a copy of the predicted mean; nothing was measured here",
            "transform": model.transform.name,
            "transform_settings": model.transform.to_dict(),
            "panel_hash": model.panel.hash,
            "recipe": model.config.recipe,
            "size": model.config.size,
            "model": model.identity,
            "encoder": str(model.encoder["name"]),
            "encoder_identity": str(model.encoder.get("identity", "")),
            "seed": config.seed,
            "samples": config.draws,
            "solver": config.sampler.name,
            "evaluations": plan.evaluations,
            "precision": precision,
            "mean_from": plan.mean_from,
            "trained_on": list(training.get("sections") or []),
            "split": str((training.get("split") or {}).get("label", "")),
            "section_in_training": tested.section in (training.get("sections") or []),
            "patient_in_training": bool(tested.patient)
            and tested.patient in set((training.get("patients") or {}).values()),
        },
        "versions": versions(),
    }
    return result
