"""Prediction: shards of spots, all samples in large batches, resumable, in memory bounded by a shard.

Noise is a function of seed, section, barcode and sample, so shards, batches and restarts do not move a number. The
result is an AnnData over the panel genes with the layers ``pred_mean``, ``pred_std``, ``pred_q05``, ``pred_q95`` in
the model's transform.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import atomic_path, content_hash, writable_folder
from morphogen.core.progress import progress
from morphogen.core.provenance import versions
from morphogen.diffusion import ItemNoise
from morphogen.expression.config import PredictConfig
from morphogen.expression.data import facts, log
from morphogen.expression.recipes.gene_diffusion import PUBLISHED_STEPS, GeneDiffusion
from morphogen.expression.recipes.spatial import SpatialModel
from morphogen.expression.sections.tables import SectionTable, tabulate
from morphogen.metrics.probabilistic import sample_quantile

if TYPE_CHECKING:
    from morphogen.expression.model import ExpressionModel

LAYERS = ("pred_mean", "pred_std", "pred_q05", "pred_q95")
MIN_SAMPLES_FOR_QUANTILES = 19  # 5 % lies inside the samples from here on

Sampler = Callable[[np.ndarray, int], torch.Tensor]  # (rows (B,), sample number) → (B, G)


def predict_section(
    model: ExpressionModel,
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
    model.check_section(section)
    model.check_panel(section)
    _check_pitch(model, section)
    table = tabulate(section)
    plan = _Plan(model, table, config, precision)
    shards = _Shards(Path(out), plan.key) if out is not None else None
    genes, n = len(model.panel), len(table)
    layers = {name: np.empty((n, genes), dtype=np.float32) for name in plan.layers}
    keep = None
    if config.keep_samples == "obsm" and config.samples:
        keep = np.empty((n, config.samples, genes), dtype=np.float16)
    elif config.keep_samples == "zarr" and config.samples:
        keep = _zarr_samples(out, n, config.samples, genes, plan.key)
    with progress.bar(n, f"{table.section}: spots") as bar:
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
    result = _result(model, section, config, plan, layers)
    if isinstance(keep, np.ndarray):
        result.obsm["pred_samples"] = keep
    if out is not None:
        with atomic_path(Path(out)) as temporary:
            result.write_h5ad(temporary, compression="gzip")
        assert shards is not None
        shards.remove()
    return result


class _Plan:
    """What is computed for a section, in which order, and how."""

    def __init__(
        self, model: ExpressionModel, table: SectionTable, config: PredictConfig, precision: str
    ) -> None:
        self.model, self.table, self.config, self.precision = model, table, config, precision
        head, self.autocast = model.sampler(precision)
        self.head: Any = head
        self.layers: tuple[str, ...] = LAYERS if config.samples >= MIN_SAMPLES_FOR_QUANTILES else LAYERS[:2]
        if config.samples < 2:
            self.layers = LAYERS[:1]
        if isinstance(self.head, SpatialModel):
            self.mean, self.scores = self.head.means(table)
            if config.solver == "reference":
                raise ConfigError(
                    "the recipe spatial has one solver, fast", where="--solver", fix="Leave --solver at fast"
                )
        else:
            self.embedded = self.head.condition(table)
        if not config.samples and isinstance(self.head, GeneDiffusion) and not self.head.has_mean:
            raise ConfigError(
                "an epsilon-model gives no mean from one forward (its error at pure noise is amplified 157 times)",
                where="--samples",
                fix="Ask for samples, e.g. --samples 20",
            )
        self.order = _locality(table)
        self.key = content_hash(
            model.identity,
            config.to_dict(),
            precision,
            (table.section, table.patient, list(table.barcodes), table.embedding, table.coords),
        )

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample."""
        if isinstance(self.head, SpatialModel):
            return self.config.steps if self.config.samples and self.head.diffused else 0
        if not self.config.samples:
            return 1
        return self.config.steps if self.config.solver == "fast" else PUBLISHED_STEPS

    def shards(self) -> Iterator[np.ndarray]:
        """Rows of each shard; close spots are in one shard, because they share noise."""
        for start in range(0, len(self.order), self.config.shard_spots):
            yield self.order[start : start + self.config.shard_spots]

    def shard(self, rows: np.ndarray, *, want_samples: bool) -> dict[str, np.ndarray]:
        """The layers of some rows, (B, G) each, and their samples (B, K, G) when wanted."""
        k = self.config.samples
        exact = self._exact_mean(rows)
        if k == 0:
            assert exact is not None
            return {"pred_mean": exact}
        samples = np.empty((len(rows), k, len(self.model.panel)), dtype=np.float32)
        draw = self._draw_spatial() if isinstance(self.head, SpatialModel) else self._draw_diffusion()
        # One flat list of (row, sample): batches stay full at the end of a shard.
        flat_rows, flat_sample = np.repeat(np.arange(len(rows)), k), np.tile(np.arange(k), len(rows))
        size = self.config.batch_size
        if isinstance(self.head, SpatialModel):  # sample by sample: the noise of close spots is made together
            flat_rows, flat_sample = np.tile(np.arange(len(rows)), k), np.repeat(np.arange(k), len(rows))
            size = len(rows)
        for start in range(0, len(flat_rows), size):
            r, s = flat_rows[start : start + size], flat_sample[start : start + size]
            samples[r, s] = draw(rows[r], s).cpu().numpy()
        if not np.isfinite(samples).all():
            raise InputError("the samples hold NaN or infinite values", where=self.table.section)
        mean = exact if exact is not None else samples.mean(axis=1)
        out = {"pred_mean": mean.astype(np.float32)}
        if "pred_std" in self.layers:
            out["pred_std"] = samples.std(axis=1, ddof=1)
        if "pred_q05" in self.layers:
            out["pred_q05"] = sample_quantile(samples, 0.05).astype(np.float32)
            out["pred_q95"] = sample_quantile(samples, 0.95).astype(np.float32)
        if want_samples:
            out["samples"] = samples.astype(np.float16)
        return out

    def _exact_mean(self, rows: np.ndarray) -> np.ndarray | None:
        if isinstance(self.head, SpatialModel):
            return self.mean[rows]
        if self.config.samples:
            return None
        size = self.config.batch_size
        parts = [
            self.head.mean(self.embedded[rows[i : i + size]], self.autocast)
            for i in range(0, len(rows), size)
        ]
        return torch.cat(parts).float().cpu().numpy()

    def _draw_diffusion(self) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
        c, table = self.config, self.table

        def draw(rows: np.ndarray, sample: np.ndarray) -> torch.Tensor:
            keys = [(table.section, table.barcodes[i], int(s)) for i, s in zip(rows, sample, strict=True)]
            noise = ItemNoise(c.seed, keys, (self.head.genes,))
            return self.head.draw(self.embedded[rows], noise, c.solver, c.steps, self.autocast)

        return draw

    def _draw_spatial(self) -> Callable[[np.ndarray, np.ndarray], torch.Tensor]:
        c, table, device = self.config, self.table, self.model.device
        offsets = self.head.offsets(table, c.samples, c.seed)
        seen = self.head.levels.is_seen(table.patient)

        def draw(rows: np.ndarray, sample: np.ndarray) -> torch.Tensor:
            noise = self.head.noise(c.seed, table, rows, int(sample[0]))
            tensors = [torch.from_numpy(v).to(device) for v in (noise, self.scores[rows], self.mean[rows])]
            offset = torch.from_numpy(offsets[sample[0]]).to(device)[None]
            return self.head.draw(*tensors, offset, c.steps, self.autocast, seen=seen)

        return draw


def _locality(table: SectionTable, block_pitches: float = 16.0) -> np.ndarray:
    """Row order that walks the section block by block."""
    if not len(table):
        return np.zeros(0, dtype=np.int64)
    cells = np.floor((table.coords - table.coords.min(axis=0)) / (block_pitches * max(table.pitch_px, 1e-9)))
    return np.lexsort((np.arange(len(table)), cells[:, 0], cells[:, 1]))


def _check_pitch(model: ExpressionModel, section: ad.AnnData) -> None:
    trained = float(model.prepared.get("pitch_um", 0.0) or 0.0)
    f = facts(section)
    here = f.pitch_px * f.mpp
    if trained and here and not 0.75 < here / trained < 1.34:
        log.warning(
            "%s: spots are %.0f µm apart, the model was trained at %.0f µm: neighbourhoods are of another size",
            *(f.section, here, trained),
        )


# --- shards -----------------------------------------------------------------------------------------------


class _Shards:
    """Finished shards on disk; those of another plan (model, settings, section) are not read."""

    def __init__(self, out: Path, key: str) -> None:
        self.folder = out.with_name(out.name + ".shards")
        self.key = key[:24]
        writable_folder(self.folder)

    def path(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:06d}.npz"

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        path = self.path(number)
        if not path.is_file():
            return None
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}

    def write(self, number: int, values: dict[str, np.ndarray]) -> None:
        with atomic_path(self.path(number)) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, **values)  # type: ignore[arg-type]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _zarr_samples(out: Path | str | None, n: int, k: int, genes: int, key: str) -> Any:
    import zarr

    if out is None:
        raise ConfigError(
            "samples in zarr need a result file", where="--keep_samples", fix="Give --out, or use obsm"
        )
    path = Path(out)
    store = zarr.open_array(
        path.with_name(path.stem + ".samples.zarr"),
        mode="w",
        shape=(n, k, genes),
        chunks=(min(n, 512) or 1, k, genes),
        dtype="float16",
    )
    store.attrs.update({"axes": ["spot", "sample", "gene"], "plan": key})
    return store


def _put(keep: Any, rows: np.ndarray, samples: np.ndarray) -> None:
    if isinstance(keep, np.ndarray):
        keep[rows] = samples
    else:
        keep.set_orthogonal_selection((rows, slice(None), slice(None)), samples)


# --- the result -------------------------------------------------------------------------------------------


def _result(
    model: ExpressionModel,
    section: ad.AnnData,
    config: PredictConfig,
    plan: _Plan,
    layers: dict[str, np.ndarray],
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
            "samples": config.samples,
            "solver": config.solver,
            "evaluations": plan.evaluations,
            "precision": plan.precision,
            "mean_from": "read-out"
            if isinstance(model.head, SpatialModel) or not config.samples
            else "samples",
            "trained_on": list(training.get("sections") or []),
            "split": str((training.get("split") or {}).get("label", "")),
            "section_in_training": tested.section in (training.get("sections") or []),
            "patient_in_training": bool(tested.patient)
            and tested.patient in set((training.get("patients") or {}).values()),
        },
        "versions": versions(),
    }
    return result
