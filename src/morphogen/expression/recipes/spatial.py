"""The recipe ``spatial``: mean read-out of context + level of the section + residual diffusion.

y(spot) = level(section) + pattern(spot) + residual(spot), with an offset on the log-count scale per sample of a
section for what an image cannot tell about depth and gene levels. Every part is fitted on training sections; every
choice and every scale comes from training sections that were held out of the fit it judges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.errors import ConfigError
from morphogen.core.running.threads import over_threads
from morphogen.core.seeds import generator, numpy_generator
from morphogen.diffusion import ItemNoise, SamplerConfig
from morphogen.expression.config import ExpressionConfig, PredictConfig, SpatialConfig
from morphogen.expression.recipes.features import ContextFeatures
from morphogen.expression.recipes.levels import Levels
from morphogen.expression.recipes.readout import Fold, Readout, ReadoutChoice, choose, fit_readout
from morphogen.expression.recipes.residual import Residual, neighbour_correlation, shared_part
from morphogen.expression.sections.neighbours import nearest_spots
from morphogen.expression.sections.tables import SectionTable, fold_numbers, inner_folds
from morphogen.expression.sections.transforms import Transform

CALIBRATION_SPOTS, CALIBRATION_GENES = 4096, 64  # enough for one number, and bounded memory


@dataclass
class HeldOut:
    """What the inner folds say about every training spot when its section (or block) was held out."""

    pattern: list[np.ndarray]  # (N, G) per table, centred in the section
    residual: list[np.ndarray]  # (N, G) y − level − pattern, with the level of the section itself
    scores: list[np.ndarray]  # (N, P) of the final features


@dataclass(frozen=True)
class ReadSection:
    """A section as it was read out: what one sample is drawn around."""

    table: SectionTable
    mean: np.ndarray  # (N, G) in the targets' transform
    scores: np.ndarray  # (N, P)
    offsets: np.ndarray  # (K, G) log-count offsets of the samples
    seen: bool  # whether the patient was in training


class SpatialModel(nn.Module):
    """All parts of the recipe, a :class:`Head`; built by :meth:`fit`, or empty from its sizes to load weights into."""

    reads_out_mean = True
    draws_together = True  # the noise of close spots is made together

    def __init__(self, config: SpatialConfig, sizes: dict[str, Any], transform: Transform) -> None:
        super().__init__()
        self.config, self.sizes, self.transform = config, dict(sizes), transform
        genes, embedding = int(sizes["genes"]), int(sizes["embedding"])
        self.features = ContextFeatures.shaped(embedding, int(sizes["first"]), int(sizes["second"]))
        self.readout = Readout(int(sizes["second"]), genes, int(sizes["landmarks"]))
        self.levels = Levels(embedding, int(sizes["level"]), genes, sizes["patients"])
        scores = min(config.scores, int(sizes["second"]))
        self.residual = Residual(genes, scores, config.factors, config.width, config.depth, config.dropout)
        self.choice = ReadoutChoice()
        self.diffused = True  # False when training did not beat the Gaussian it starts from
        self.report: dict[str, Any] = {}

    # --- fitting ------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls, tables: Sequence[SectionTable], config: SpatialConfig, transform: Transform
    ) -> tuple[SpatialModel, HeldOut, list[np.ndarray]]:
        """Everything in closed form. Returns the model, the held-out predictions, and the whitened held-out
        residuals (N, G) per table that the residual network is trained on."""
        folds = inner_folds(tables)
        numbers = fold_numbers(folds)
        inner = [_fold(tables, folds, k, config) for k in numbers]
        choice, score, tried = choose([fold for fold, _ in inner])
        features = ContextFeatures.fit(tables, config.first_components, config.second_components)
        scores = [features.section(t) for t in tables]
        levels = Levels.fit(tables, config, transform.unit)
        centred = np.concatenate([t.y - t.y.mean(axis=0) for t in tables])
        fits = [(fold.scores, fold.values) for fold, _ in inner] + [(np.concatenate(scores), centred)]
        *without, readout = over_threads(lambda each: fit_readout(*each, choice), fits)

        pattern = [np.zeros_like(t.y) for t in tables]
        for k, (fold, _), judged in zip(numbers, inner, without):
            with torch.no_grad():
                held = judged(torch.from_numpy(fold.held_scores)).numpy()
            start = 0
            for p, f in zip(pattern, folds):
                n = int((f == k).sum())
                p[f == k] = held[start : start + n]
                start += n
        pattern = [p - p.mean(axis=0) for p in pattern]
        residual = [t.y - t.y.mean(axis=0) - p for t, p in zip(tables, pattern)]

        sizes = {
            "genes": centred.shape[1],
            "embedding": tables[0].embedding.shape[1],
            "first": features.raw.components.shape[1],
            "second": features.width,
            "landmarks": len(readout.landmarks),
            "level": levels.weights.shape[0],
            "patients": levels.patients,
        }
        model = cls(config, sizes, transform)
        model.features, model.readout, model.levels, model.choice = features, readout, levels, choice
        mean = [t.y.mean(axis=0) + p for t, p in zip(tables, pattern)]
        flat = model.residual.fit_gaussian(
            np.concatenate(mean).astype(np.float32), np.concatenate(residual), np.concatenate(scores)
        )
        whitened = np.split(flat.astype(np.float32), np.cumsum([len(t) for t in tables])[:-1])
        if config.smooth_noise:
            close = [nearest_spots(t.coords, max(t.near, 5)) for t in tables]
            share = shared_part(neighbour_correlation(whitened, close), close, tables[0].near)
            model.residual.correlation.copy_(torch.from_numpy(share))
        model.report = {
            "inner_pcc": score,
            "choice": choice.to_dict(),
            "tried": tried,
            "levels": levels.facts(),
        }
        return model, HeldOut(pattern, residual, scores), whitened

    def calibrate(self, tables: Sequence[SectionTable], held: HeldOut, level: float = 0.9) -> None:
        """Set the factors on the residual so that held-out training spots lie in the central interval this often.

        One factor from sections whose patient had another section in the fit that held them out, one from sections
        of patients that had none; a kind that does not occur in training takes the other's. The level of a held-out
        section is taken as known: how unsure that is, is the offsets' business.
        """
        patients = [t.patient for t in tables]
        seen = [len(tables) == 1 or (bool(p) and patients.count(p) > 1) for p in patients]
        found = {}
        for kind in (False, True):
            rows = np.flatnonzero(np.concatenate([np.full(len(t), s == kind) for t, s in zip(tables, seen)]))
            if len(rows):
                found[kind] = self._factor(tables, held, rows, level)
        for kind in (False, True):
            self.residual.calibration[int(kind)] = found.get(kind, found.get(not kind, 1.0))
        self.report["calibration"] = {
            "level": level,
            "new": float(self.residual.calibration[0]),
            "seen": float(self.residual.calibration[1]),
            "from": ["new", "seen"] if len(found) == 2 else ["seen" if True in found else "new"],
        }

    @torch.no_grad()
    def _factor(
        self, tables: Sequence[SectionTable], held: HeldOut, rows: np.ndarray, level: float, samples: int = 39
    ) -> float:
        """The factor at which ``level`` of these held-out spots are covered, ties split: a closed interval of counts
        covers too much, and would ask for too little spread."""
        device, genes = self.readout.mean.device, self.readout.mean.numel()
        rng, g = numpy_generator("calibration", len(rows)), generator("calibration", len(rows))
        rows = np.sort(rng.choice(rows, min(len(rows), CALIBRATION_SPOTS), replace=False))
        some = torch.linspace(0, genes - 1, min(genes, CALIBRATION_GENES), device=device).long()

        def chosen(parts: Sequence[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts)[rows].astype(np.float32)).to(device)

        mean = chosen([t.y.mean(axis=0) + p for t, p in zip(tables, held.pattern)])
        truth, scores = chosen([t.y for t in tables])[:, some], chosen(held.scores)
        self.residual.calibration.fill_(1.0)
        sampler = SamplerConfig.fast() if self.diffused and self.residual.factors else None
        draws, dither = [], []
        for _ in range(samples):
            noise = torch.randn((len(rows), genes), generator=g).to(device)
            draws.append(self.residual(noise, scores, mean, sampler)[:, some])
            dither.append(torch.rand((len(rows), len(some)), generator=g).to(device))
        residual, uniform, mean = torch.stack(draws), torch.stack(dither), mean[:, some]
        low, high = 0.3, 3.0
        for _ in range(12):
            factor = (low * high) ** 0.5
            drawn = self.observed(mean + factor * residual, 0.0, uniform)
            tied = (drawn - truth).abs() < 1e-5
            first = ((drawn < truth) & ~tied).sum(dim=0) / (samples + 1)
            width = (tied.sum(dim=0) + 1) / (samples + 1)
            reach = (first + width).clamp_max((1 + level) / 2) - first.clamp_min((1 - level) / 2)
            inside = float((reach.clamp_min(0) / width).mean())
            low, high = (factor, high) if inside < level else (low, factor)
        return factor

    # --- prediction ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def means(self, table: SectionTable) -> tuple[np.ndarray, np.ndarray]:
        """``(mean (N, G), scores (N, P))`` of a whole section, in the targets' transform; one read-out, no sampling."""
        scores = self.features.section(table)
        device = self.readout.mean.device
        parts = [
            self.readout(torch.from_numpy(s).to(device)).cpu()
            for s in np.array_split(scores, max(1, len(scores) // 4096))
        ]
        pattern = torch.cat(parts).numpy()
        pattern -= pattern.mean(axis=0)
        level = self.levels.predict(table.embedding, table.patient)
        return np.maximum(level + pattern, 0.0).astype(np.float32), scores

    def offsets(self, table: SectionTable, k: int, seed: int) -> np.ndarray:
        """(K, G) log-count offsets of the K samples of a section."""
        rng = numpy_generator(seed, "offset", table.section, k)
        return self.levels.scale(table.patient).draw(k, self.readout.mean.numel(), rng)

    @property
    def counts(self) -> bool:
        """Whether samples are whole counts."""
        return self.config.counts and not self.transform.library

    def observed(self, value: Tensor, offset: Tensor | float, uniform: Tensor) -> Tensor:
        """From log values to what would be measured, in the targets' transform.

        The offset scales the counts, and the result is rounded to a whole count up or down at random, by ``uniform``
        in [0, 1), so that its mean stays: a section of a tenth of the depth holds mostly zeros, not tenths of counts.
        """
        unit = self.transform.unit
        count = torch.expm1(value.clamp_min(0) / unit)
        if isinstance(offset, Tensor):
            count = count * torch.exp(offset)
        if self.counts:
            count = torch.floor(count + uniform)
        return torch.log1p(count) * unit

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        scores: Tensor,
        mean: Tensor,
        offset: Tensor,
        sampler: SamplerConfig | None,
        precision: str = "fp32",
        *,
        seen: bool = False,
    ) -> Tensor:
        """One sample per row, in the targets' transform: noise (2, B, G), mean, offset (B, G), scores (B, P)."""
        r = self.residual(noise[0], scores, mean, sampler if self.diffused else None, precision, seen=seen)
        return self.observed(mean + r, offset, torch.special.ndtr(noise[1]))

    def noise(self, seed: int, table: SectionTable, rows: np.ndarray, replicate: int) -> np.ndarray:
        """(2, B, G) noise of some spots for one replicate: of the residual, and of the rounding to counts.

        A function of seed, section, barcodes and replicate only. With smooth noise a spot's is √(1−ρ)·own +
        √ρ·(sum over its neighbours)/√(their number): standard normal for every spot, correlated between close ones,
        and the same in whatever batch a spot is.
        """
        genes = self.readout.mean.numel()
        share = self.residual.correlation.cpu().numpy()
        if not share.any():
            keys = [(table.section, table.barcodes[i], replicate) for i in rows]
            return np.ascontiguousarray(ItemNoise(seed, keys, (2, genes))(-1).numpy().swapaxes(0, 1))
        index = table.neighbours[rows][:, : table.near]
        needed = np.unique(np.concatenate([index[index >= 0], rows]))
        keys = [(table.section, table.barcodes[i], replicate) for i in needed]
        z = ItemNoise(seed, keys, (3, genes))(-1).numpy()
        place = np.searchsorted(needed, np.where(index >= 0, index, rows[:, None]))
        present = (index >= 0)[..., None]
        smooth = np.zeros((len(rows), genes), dtype=np.float32)
        for column in range(index.shape[1]):
            smooth += np.where(present[:, column], z[place[:, column], 2], 0.0)
        smooth /= np.sqrt(present.sum(axis=1))
        own = z[np.searchsorted(needed, rows)]
        return np.stack([np.sqrt(1 - share) * own[:, 0] + np.sqrt(share) * smooth, own[:, 1]]).astype(
            np.float32
        )

    # --- the face of a head -------------------------------------------------------------------------------

    @property
    def sampled(self) -> nn.Module:
        return self.residual.network

    def check(self, config: PredictConfig) -> None:
        if config.draws and config.sampler.solver != "dpmpp_2m":
            raise ConfigError(
                "the recipe spatial has one solver, fast", where="--solver", fix="Leave --solver at fast"
            )

    def evaluations(self, config: PredictConfig) -> int:
        return config.sampler.steps if config.draws and self.diffused else 0

    def given(self, table: SectionTable, config: PredictConfig) -> ReadSection:
        mean, scores = self.means(table)
        offsets = self.offsets(table, config.draws, config.seed)
        return ReadSection(table, mean, scores, offsets, self.levels.is_seen(table.patient))

    def mean(self, given: ReadSection, rows: np.ndarray, precision: str = "fp32") -> np.ndarray:
        return given.mean[rows]

    def draw(
        self,
        given: ReadSection,
        rows: np.ndarray,
        sample: np.ndarray,
        config: PredictConfig,
        precision: str = "fp32",
    ) -> Tensor:
        device, number = self.readout.mean.device, int(sample[0])
        noise = self.noise(config.seed, given.table, rows, number)
        tensors = [torch.from_numpy(v).to(device) for v in (noise, given.scores[rows], given.mean[rows])]
        offset = torch.from_numpy(given.offsets[number]).to(device)[None]
        return self.sample(*tensors, offset, config.sampler, precision, seen=given.seen)

    def reduced(self, precision: str) -> tuple[Self, str]:
        return self, precision

    def facts(self) -> dict[str, Any]:
        """What a saved model needs beside its tensors."""
        return {
            "sizes": self.sizes,
            "choice": self.choice.to_dict(),
            "levels": self.levels.facts(),
            "diffused": self.diffused,
            "report": self.report,
        }

    @classmethod
    def from_facts(cls, config: ExpressionConfig, facts: Mapping[str, Any], transform: Transform) -> Self:
        head = cls(config.spatial, facts["sizes"], transform)
        head.set_facts(dict(facts))
        return head

    def set_facts(self, facts: dict[str, Any]) -> None:
        self.choice = ReadoutChoice(**facts["choice"])
        self.levels.set_facts(facts["levels"])
        self.diffused, self.report = bool(facts["diffused"]), dict(facts["report"])


def _fold(
    tables: Sequence[SectionTable], folds: Sequence[np.ndarray], k: int, config: SpatialConfig
) -> tuple[Fold, ContextFeatures]:
    """One inner fold: features and centring from the spots that are fitted, scored on those that are not."""
    fitted = [t.rows(f != k) for t, f in zip(tables, folds) if (f != k).any()]
    features = ContextFeatures.fit(fitted, config.first_components, config.second_components)
    scores, values, held_scores, held_values, group = [], [], [], [], []
    for i, (t, f) in enumerate(zip(tables, folds)):
        x = features.section(t)  # neighbours come from the image, so those of the other part may be looked at
        if (f != k).any():
            scores.append(x[f != k])
            values.append(t.y[f != k] - t.y[f != k].mean(axis=0))
        if (f == k).any():
            held_scores.append(x[f == k])
            held_values.append(t.y[f == k])
            group.append(np.full(int((f == k).sum()), i))
    parts = [np.concatenate(v) for v in (scores, values, held_scores, held_values, group)]
    return Fold(*parts), features
