"""Training: noise to tiles, given their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.devices import resolve_device
from morphogen.core.errors import InputError
from morphogen.core.files import writable_folder
from morphogen.core.running.spread import Spread
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import losses
from morphogen.slides import get_encoder
from morphogen.tissue.config import DataConfig, ModelConfig, TrainConfig
from morphogen.tissue.data import TileDataset, TileTable, read_tiles, spread_rows
from morphogen.tissue.model import TissueDiffusion
from morphogen.tissue.network import Standardiser
from morphogen.tissue.starting import new_model
from morphogen.training import Draws, TrainResult, fit

_VALIDATED = 128  # held-out tiles whose loss is measured
_LEVELS = 4  # at so many noise levels each
_FITTED = 500  # tiles whose blocks the components are fitted to


class TissueTask:
    """What the training loop needs: see :class:`morphogen.training.Task`."""

    def __init__(
        self,
        tissue: TissueDiffusion,
        dataset: TileDataset,
        config: TrainConfig,
        validation: TileTable,
        identity: dict[str, Any],
        variance: Tensor | None = None,
    ) -> None:
        self.variance = variance
        self.tissue, self.dataset, self.config = tissue, dataset, config
        self.validation, self.identity = validation, identity
        self.model: nn.Module = tissue.network

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Loss per item; time, noise and what of the condition is dropped are drawn for the item alone."""
        tissue, objective = self.tissue, self.config.objective
        x0 = self._latents(batch["image"], draws)
        context = model.embedder(**self._dropped(batch, draws))
        t = draws.integers(tissue.schedule.T)
        return self._figures(model, x0, context, t, draws.normal_like(x0), objective.min_snr_gamma)

    def _figures(
        self, model: nn.Module, x0: Tensor, context: Tensor, t: Tensor, noise: Tensor, gamma: float | None
    ) -> dict[str, Tensor]:
        tissue = self.tissue
        figures = losses.diffusion_loss(
            model,
            x0,
            t,
            noise,
            tissue.schedule,
            prediction=tissue.config.prediction,
            weight="wiener" if self.variance is not None else "min_snr" if gamma is not None else None,
            gamma=gamma or 5.0,
            variance=self.variance,
            condition={"context": context},
        )
        if tissue.config.prediction == "x0" and gamma is None and self.variance is None:
            most = self.config.objective.x0_weight
            figures["loss"] = figures["loss"] * losses.v_weight(tissue.schedule, t, most)
        return figures

    def _latents(self, images: Tensor, draws: Draws | None = None) -> Tensor:
        """(B, 3, H, W) uint8 → scaled latents; a KL posterior is sampled where ``draws`` are given."""
        tissue = self.tissue
        with torch.no_grad():
            encoded = tissue.first_stage.encode(images.to(tissue.device).float() / 127.5 - 1)
            if encoded.std is None or draws is None:
                return tissue.first_stage.scaling * encoded.mode()
            return tissue.first_stage.scaling * encoded.sample(draws.normal_like(encoded.mean))

    def _dropped(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Embeddings as tokens are made of, each dropped (zero) by itself, and all together with ``p_both``."""
        objective = self.config.objective
        names = list(self.tissue.config.embeddings)
        both = draws.bernoulli(objective.p_both if len(names) > 1 else 0.0)
        out = {}
        for name in names:
            drop = draws.bernoulli(objective.p_uncond) | both
            vectors = self.tissue.vectors(name, batch[name])
            out[name] = torch.where(drop[:, None], torch.zeros_like(vectors), vectors)
        return out

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss on held-out tiles with their own embeddings, and how much more it is with those of other tiles."""
        rows = spread_rows(len(self.validation), _VALIDATED)
        if not len(rows):
            return {}
        own, other = [], []
        for start in range(0, len(rows), 16):
            part = self.validation.take(rows[start : start + 16])
            images = torch.from_numpy(part.read(range(len(part)))).permute(0, 3, 1, 2)
            x0 = self._latents(images)
            vectors = {
                name: self.tissue.vectors(name, part.features[name]) for name in self.tissue.config.embeddings
            }
            context = model.embedder(**vectors)
            for level in range(_LEVELS):
                t = torch.full(
                    (len(part),), int((level + 0.5) / _LEVELS * self.tissue.schedule.T), device=x0.device
                )
                keys = torch.from_numpy(rows[start : start + 16]) * _LEVELS + level
                noise = Draws(self.config.training.seed, keys, x0.device).normal_like(x0)
                own.append(self._figures(model, x0, context, t, noise, None)["loss"])
                other.append(self._figures(model, x0, context.roll(1, 0), t, noise, None)["loss"])
        matched, shuffled = torch.cat(own).mean(), torch.cat(other).mean()
        return {"loss": float(matched), "condition_gain": float(shuffled / matched - 1)}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """``tiles.png``: held-out tiles above, drawn from their embeddings below."""
        rows = spread_rows(len(self.validation), self.config.preview_tiles)
        if not len(rows):
            return
        from PIL import Image

        part = self.validation.take(rows)
        made = self.tissue(
            part.features["patch"], region=part.features.get("region"), seed=self.config.training.seed
        )
        both = np.concatenate(
            [
                np.concatenate(list(part.read(range(len(part)))), axis=1),
                np.concatenate(list(made.images.cpu().numpy()), axis=1),
            ]
        )
        Image.fromarray(both).save(folder / "tiles.png")


@dataclass(frozen=True)
class Trained:
    """A finished training: the model with its averaged weights, its folder, the run, and why images were left out."""

    model: TissueDiffusion
    folder: Path
    run: TrainResult
    tiles: int
    held_out: int
    failed: tuple[str, ...] = ()


@locks_folder()
def train_model(
    sources: Sequence[Path | str] | Path | str | TileTable,
    config: TrainConfig,
    out: Path | str,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compile: bool | None = False,
    spread: Spread | None = None,
) -> Trained:
    """Read tiles, train, and write the model to ``out/model`` (averaged weights; the best where they are chosen).

    ``sources``: what :func:`~morphogen.tissue.read_tiles` reads, or a table. A run found in ``out`` goes on from its
    newest checkpoint. ``out/split.json`` names the groups on both sides. ``spread`` is where images are encoded.
    """
    from morphogen.core.files import write_json

    out = writable_folder(out)
    device = resolve_device(device)
    table = (
        sources
        if isinstance(sources, TileTable)
        else read_tiles(sources, config.data, cache=out / "features", spread=spread)
    )
    train, held = table.split(config.data.hold_out, config.training.seed, config.data.hold_out_groups)
    if not len(train):
        raise InputError("there are no tiles to train on", where="tiles")
    config = config.replace(model=_with_embeddings(config.model, train))
    facts = {
        "tiles": len(train),
        "held_out": len(held),
        "source": table.facts,
        "store": table.identity(),
        "objective": config.objective.to_dict(),
        "size": config.model.size,
        "steps": config.training.steps,
        "seed": config.training.seed,
    }
    fitted = train.read(spread_rows(len(train), _FITTED).tolist())
    model = new_model(
        config.model,
        tile_px=train.tile_px,
        mpp=train.mpp,
        statistics=Standardiser.of(train.features),
        init=config.init,
        seed=config.training.seed,
        facts=facts,
        tiles=fitted if config.model.first_stage == "components" else None,
    ).to(device)
    config.save(out / "config.yaml")
    write_json(out / "split.json", {"train": sorted(set(train.groups)), "held_out": sorted(set(held.groups))})
    identity = {
        "model": config.model.to_dict() | {"encoder_weights": None, "autoencoder": None},
        "objective": config.objective.to_dict(),
        "tiles": train.identity(),
        "flip": config.data.flip,
        "turn": config.data.turn,
        "init": facts.get("init"),
    }
    dataset = TileDataset(
        train, flip=config.data.flip, turn=config.data.turn, memory_gib=config.data.memory_gib
    )
    variance = None
    if config.objective.by_channel:
        variance = model.first_stage.variance(model.pixels(torch.from_numpy(fitted)))
    task = TissueTask(model, dataset, config, held, identity, variance)
    run = fit(task, config.training, out, device=device, precision=precision, compile=compile)
    model.network.load_state_dict(run.best_state())
    model.network.eval()
    model.facts = {**model.facts, "step": run.best_step or run.step, "metrics": run.metrics}
    model.__dict__.pop("identity", None)
    return Trained(model, model.save_pretrained(out / "model"), run, len(train), len(held), table.failed)


def _with_embeddings(config: ModelConfig, table: TileTable) -> ModelConfig:
    """Widths and encoder of the embeddings, from the tiles."""
    widths = {name: values.shape[1] for name, values in table.features.items()}
    encoder = config.encoder if config.encoder is not None else table.facts.get("encoder")
    return config.replace(embeddings=widths, encoder=encoder)


def encoder_name(model: TissueDiffusion, asked: str | None = None) -> str | None:
    """The encoder a model's embeddings are of, or ``asked`` where the model does not say; :class:`InputError` when it
    says another."""
    if asked is not None and model.config.encoder not in (None, asked):
        raise InputError(
            f"the model was trained on embeddings of '{model.config.encoder}', not of '{asked}'",
            where="--encoder",
            fix="Leave --encoder out",
        )
    return asked or model.config.encoder


def model_encoder(
    model: TissueDiffusion,
    device: str | torch.device = "cpu",
    *,
    encoder: str | None = None,
    weights: Path | str | None = None,
) -> Any:
    """The encoder a model's embeddings are of; :class:`InputError` when neither the model nor ``encoder`` says.

    weights: where its weights lie on this machine, if not where the model was trained.
    """
    name = encoder_name(model, encoder)
    if name is None:
        raise InputError(
            "the model does not say which encoder its embeddings are of",
            where="--encoder",
            fix="Name it, or give embeddings instead of images",
        )
    return get_encoder(name, weights or model.config.encoder_weights, device=device)


def tiles_for(
    model: TissueDiffusion,
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    encoder: str | None = None,
    weights: Path | str | None = None,
    mpp: float | None = None,
    most: int | None = None,
    group: Literal["patient", "slide", "folder"] = "patient",
    spread: Spread | None = None,
) -> TileTable:
    """Tiles as a model was trained on: its size, its µm/px, its encoder; features are kept in ``out/features``.

    encoder, weights: where the model does not name its encoder, or its weights lie elsewhere. most: rows at most,
    spread over all. spread: where images are encoded. Raises :class:`InputError` when the model's encoder is another.
    """
    name = encoder_name(model, encoder)
    config = DataConfig(
        tile_px=model.tile_px,
        tile_mpp=model.mpp or 0.5,
        mpp=mpp,
        encoder=name or "texture",
        encoder_weights=str(weights) if weights is not None else model.config.encoder_weights,
        group=group,
    )
    table = read_tiles(sources, config, cache=Path(out) / "features", spread=spread)
    said = table.facts.get("encoder")
    if None not in (name, said) and said != name:
        raise InputError(
            f"the embeddings are of '{said}', the model was trained on those of '{name}'",
            where="tiles",
            fix="Encode with the model's own encoder",
        )
    model.vectors("patch", table.features["patch"][:1])  # of the model's width, or an error
    return table if most is None or most >= len(table) else table.take(spread_rows(len(table), most))
