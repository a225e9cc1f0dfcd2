"""``TissuePrior``: a small diffusion transformer over grids of embeddings.

Embeddings are standardised and reduced to the principal components that keep 95 % of their variance; a grid of them is
an image of few pixels and many channels. The Gaussian field of their spectrum gives a linear estimate
(:class:`~morphogen.tissue.priors.field.GridField`), and a DiT (Peebles & Xie 2023) with one token per cell learns what
that leaves over: neighbours agree from the first step on, which a short training of a transformer alone does not reach.
Larger grids are drawn by the same windows that draw canvases.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.errors import CheckpointError, ConfigError, InputError, nearest
from morphogen.core.seeds import seed_for
from morphogen.diffusion import CanvasNoise, Schedule, WindowLayout, network_denoiser, windowed
from morphogen.diffusion.sampler import SamplerConfig, sample
from morphogen.nets.folders import component
from morphogen.tasks.pretrained import Pretrained
from morphogen.tissue.canvases.grid import EmbeddingGrid
from morphogen.tissue.priors.config import PriorConfig
from morphogen.tissue.priors.field import GridField

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

_Width = Annotated[int, Field(gt=0, le=1 << 16)]  # of an embedding, or its components


class PriorNetwork(nn.Module):
    """``network(x, t, label=…)``: x (B, K, g, g) noisy grids of components, t (B,), label (B,) → x0 (B, K, g, g).

    The linear estimate of the field, and what the transformer adds in units of what the estimate leaves over
    (preconditioning as in Karras et al. 2022, per component). The last label is the null one; training drops labels
    to it.
    """

    def __init__(self, transformer: DiTTransformer2DModel, field: GridField, schedule: Schedule) -> None:
        super().__init__()
        self.transformer, self.field, self.schedule = transformer, field, schedule
        for module in transformer.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0  # labels are dropped by the training task, in all blocks together

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the diffusers folder."""
        self.transformer.save_pretrained(folder, safe_serialization=True)

    def forward(self, x: Tensor, t: Tensor, *, label: Tensor) -> Tensor:
        alpha, sigma = self.schedule.levels_like(t, x)
        estimate, left = self.field(x, alpha, sigma)
        unit = x / (alpha**2 * self.field.variance + sigma**2).sqrt()
        more = self.transformer(unit, timestep=t, class_labels=label.expand(len(x))).sample
        return estimate + left * more


class Components(nn.Module):
    """Standardised principal components: mean, SD and axes of the embeddings, and one scale for all components, so
    that their mean variance is one."""

    mean: Tensor
    sd: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, width: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("sd", torch.ones(width))
        self.register_buffer("axes", torch.zeros(width, kept))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def of(cls, features: np.ndarray, share: float = 0.95, most: int = 128) -> Components:
        """Of features (N, D): the fewest components that keep ``share`` of the standardised variance, ``most`` at
        most."""
        wide = features.astype(np.float64)
        sd = wide.std(axis=0)
        sd = np.where(sd > 1e-8, sd, 1.0)
        values, axes = np.linalg.eigh(np.cov((wide - wide.mean(axis=0)) / sd, rowvar=False))
        values, axes = values[::-1].clip(0), axes[:, ::-1]
        kept = min(most, int((np.cumsum(values) < share * values.sum()).sum()) + 1)
        made = cls(features.shape[1], kept)
        made.mean.copy_(torch.from_numpy(wide.mean(axis=0)))
        made.sd.copy_(torch.from_numpy(sd))
        made.axes.copy_(torch.from_numpy(axes[:, :kept].copy()))
        made.scale.fill_(float(np.sqrt(values[:kept].mean())))
        return made

    @property
    def kept(self) -> int:
        """Number of components."""
        return self.axes.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """(…, D) embeddings → (…, K)."""
        return ((features - self.mean) / self.sd) @ self.axes / self.scale

    def inverse(self, components: Tensor) -> Tensor:
        """(…, K) → (…, D); what lies outside of the components is the mean."""
        return (components * self.scale) @ self.axes.T * self.sd + self.mean


class TissuePrior(Pretrained):
    """Draws grids of embeddings.

    Parameters
    ----------
    network, components, config:
        The transformer, what it is applied to, and its settings.
    labels:
        Names of the classes a grid can be asked for.
    facts:
        Provenance; the encoder among it.
    """

    kind: ClassVar[str] = "tissue-prior"
    config: PriorConfig

    def __init__(
        self,
        network: PriorNetwork,
        components: Components,
        config: PriorConfig,
        labels: list[str],
        facts: dict[str, Any] | None = None,
    ) -> None:
        self._network, self.space, self.config = network, components, config
        self.labels, self.facts = list(labels), dict(facts or {})
        self.schedule = network.schedule

    @classmethod
    def fresh(
        cls,
        config: PriorConfig,
        components: Components,
        labels: list[str],
        field: GridField | None = None,
        **facts: Any,
    ) -> Self:
        """A prior with fresh weights: it draws from ``field``, by default without any correlation between cells."""
        from diffusers import DiTTransformer2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.training.seed, "tissue prior"))
            network = DiTTransformer2DModel(
                num_attention_heads=config.heads,
                attention_head_dim=config.width // config.heads,
                in_channels=components.kept,
                out_channels=components.kept,
                num_layers=config.depth,
                sample_size=config.side,
                patch_size=1,
                num_embeds_ada_norm=len(labels),
            )
            nn.init.zeros_(network.proj_out_2.weight)
            nn.init.zeros_(network.proj_out_2.bias)
        field = field or GridField(components.kept, config.side)
        return cls(PriorNetwork(network, field, Schedule.cosine()), components, config, labels, facts)

    @property
    def network(self) -> PriorNetwork:
        """What is trained."""
        return self._network

    def components(self) -> Mapping[str, Any]:
        return {"network": self._network, "field": self._network.field, "components": self.space}

    def saved(self) -> dict[str, Any]:
        shape = [self.space.axes.shape[0], self.space.kept]
        return {"labels": self.labels, "components_shape": shape, "training": self.facts}

    @classmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        from diffusers import DiTTransformer2DModel

        config: PriorConfig = read.settings(PriorConfig)
        space = Components(*read.fact("components_shape", tuple[_Width, _Width]))
        read.restore(space, "components")
        field = GridField(space.kept, config.side)
        if not (read.path / "field.safetensors").is_file():  # learned neighbours from nothing
            raise CheckpointError(
                "this prior is not whole, or of a version before priors had a field of their grids",
                where=read.path,
                fix="Copy the whole folder, or train it again with morphogen tissue prior",
            )
        read.restore(field, "field")
        transformer = component(read.component("network"), DiTTransformer2DModel)
        network = PriorNetwork(transformer, field, Schedule.cosine()).eval()
        return cls(
            network, space, config, read.fact("labels", list[str]), read.fact("training", dict[str, Any], {})
        )

    def label(self, name: str | None) -> int:
        """Number of a class; the null label for ``None``; :class:`ConfigError` for an unknown one."""
        if name is None:
            return len(self.labels)
        if name not in self.labels:
            raise ConfigError(
                f"this prior has no class '{name}', only {', '.join(self.labels[:8])}.{nearest(name, self.labels)}",
                where="--label",
            )
        return self.labels.index(name)

    @torch.no_grad()
    def __call__(
        self,
        shape: tuple[int, int] | None = None,
        *,
        label: str | None = None,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        guidance: float = 1.0,
        batch: int = 16,
    ) -> EmbeddingGrid:
        """Draw a grid of (rows, columns) embeddings, by default of the size that was trained.

        label: a class of tissue; ``None`` = any. guidance: how much more of that class, 1 = none.
        """
        side = self.config.side
        rows, columns = shape or (side, side)
        if min(rows, columns) < 1:
            raise InputError(f"a grid of {rows} × {columns} has no cells", where="prior")
        size = (max(rows, side), max(columns, side))
        sampler = sampler or SamplerConfig(steps=20, spacing="log_snr")
        sampler = sampler.replace(guidance_scale=guidance if label is not None else 1.0)
        noise = CanvasNoise(seed_for(seed, "prior"), (1, self.space.kept, *size), block=16)
        layout = WindowLayout(size, side, max(1, side // 2))
        null = torch.tensor([len(self.labels)], device=self.device)
        drawn = sample(
            network_denoiser(self.network, self.schedule, "x0"),
            noise(-1).to(self.device),
            self.schedule,
            sampler,
            noise=noise,
            condition={"label": torch.tensor([self.label(label)], device=self.device)},
            null_condition={"label": null},
            around=lambda inner: windowed(inner, layout, "feather", batch, schedule=self.schedule),
        )
        vectors = self.space.inverse(drawn[0].permute(1, 2, 0))[:rows, :columns]
        facts = {"from": "prior", "prior": self.identity[:16], "label": label, "seed": seed}
        return EmbeddingGrid(vectors.cpu().numpy().astype(np.float32), facts=facts)
