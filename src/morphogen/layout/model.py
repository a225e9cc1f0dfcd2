"""``LayoutDiffusion``: a label map and style images to an image of that layout in that style."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.errors import InputError
from morphogen.core.running.transfers import sent
from morphogen.diffusion import Denoiser, ItemNoise, Schedule, network_denoiser
from morphogen.diffusion.guidance import anchored, column_guided
from morphogen.diffusion.sampler import SamplerConfig, sample
from morphogen.layout.config import Edit, ModelConfig
from morphogen.nets import FirstStage, load_first_stage
from morphogen.nets.layout.network import LayoutNetwork
from morphogen.tasks import Pretrained

LEAST = 5  # steps that sampling takes, however few of the noise levels it begins with


class LayoutSampler(SamplerConfig):
    """How an image is made. ``fast``: 12 second-order steps, 24 evaluations with guidance; fewer where an image of the
    layout is given to begin with. ``reference``: STEDM's code,
    143 DDIM steps (286 evaluations), guidance per column.

    >>> LayoutSampler.fast().steps
    12
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "fast": {},
        "reference": {
            "solver": "ddim",
            "steps": 128,
            "spacing": "strided",
            "final": "first",
            "strength": 1.0,
            "published": True,
        },
        "mean": {"solver": "mean", "steps": 1, "guidance_scale": 1.0, "strength": 1.0},
    }

    steps: int = Field(12, ge=1, description="Steps from noise to data.")
    guidance_scale: float = Field(
        1.5, ge=0, description="Guidance towards the style, eps_u + s·(eps_c − eps_u). 1 = none."
    )
    strength: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Where the image of a layout is given, sampling begins at that image with the noise of this share "
        "of the times. 1: at noise alone.",
    )
    edit: Edit = "cyclediffusion"
    published: bool = Field(
        False,
        description="Guidance rescaled per column and colours cut off, not rounded, as in STEDM's code.",
    )

    @property
    def keeps(self) -> bool:
        """Whether an image that sampling begins at is kept but for its style, which then has to be told, too."""
        return self.strength < 1 and self.edit == "cyclediffusion"

    def evaluations(self, schedule: Schedule) -> int:
        """As for every sampler; one more a step where the image to begin with is looked at, too."""
        return super().evaluations(schedule) + (len(self.times(schedule)) if self.keeps else 0)

    def times(self, schedule: Schedule) -> list[float]:
        """The times visited, noisiest first: those up to ``strength``. Where that leaves fewer than 5, they lie closer,
        so that it is 5."""
        steps = max(self.steps, math.ceil(LEAST / self.strength)) if self.strength < 1 else self.steps
        found = super(LayoutSampler, self.replace(steps=steps)).times(schedule)
        return [t for t in found if t <= self.strength * schedule.last] or found[-1:]


class LayoutDiffusion(Pretrained):
    """Layout and style → image.

    ``model(labels, styles)`` makes one image for every label map.

    Parameters
    ----------
    network:
        U-Net, layout mapper, style encoder and aggregator.
    first_stage:
        Pixels ↔ latents; it is not trained.
    config:
        What the model is.
    facts:
        Provenance, saved with the model.
    """

    kind = "layout"
    config: ModelConfig
    network: LayoutNetwork

    def __init__(
        self,
        network: LayoutNetwork,
        first_stage: FirstStage,
        config: ModelConfig,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.first_stage, self.config = network, first_stage, config
        self.facts = dict(facts or {})
        self.schedule = Schedule.scaled_linear(config.beta_start, config.beta_end)
        first_stage.requires_grad_(False).eval()

    # -- the furniture of a pipeline object
    # ----------------------------------------------------------------------------

    def components(self) -> dict[str, Any]:
        return {"network": self.network, "first_stage": self.first_stage}

    def saved(self) -> dict[str, Any]:
        return {"facts": self.facts}

    @classmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        config = read.settings(ModelConfig)
        with torch.device("meta"):
            network = LayoutNetwork(config.network)
        network.to_empty(device="cpu")
        read.restore(network, "network")
        first_stage = load_first_stage(read.component("first_stage"))
        return cls(network.eval(), first_stage, config, read.fact("facts", dict[str, Any], {}))

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, device: str | torch.device = "cpu", **options: Any
    ) -> Self:
        """Load a model folder of this room (or hub id), or a checkpoint written by STEDM's code (``.ckpt``).

        options, of a checkpoint: ``weights="ema"`` takes the averaged U-Net; ``heads`` of the middle attention where
        the file does not say; ``crop`` and ``mpp`` it was trained at, where that does not; ``classes``, two names.
        """
        if Path(folder).is_file():
            return cls.published(folder, **options).to(device)
        return super().from_pretrained(folder, device=device, **options)

    @classmethod
    def published(
        cls,
        path: Path | str,
        *,
        weights: str = "model",
        heads: int | None = None,
        crop: int | None = None,
        mpp: float | None = None,
        classes: Sequence[str] = ("background", "foreground"),
    ) -> Self:
        """The model of a STEDM Lightning checkpoint; classes above the first are one to it."""
        from morphogen.checkpoints.stedm import load_stedm

        found = load_stedm(path, weights, heads)
        samplings = {"augmented": "augmented", "nearby": "nearby", "mp": "mp", "none": "none"}
        config = ModelConfig(
            classes=tuple(classes),
            network=found.network.config,
            prediction="epsilon",
            beta_start=found.schedule.beta_start,
            beta_end=found.schedule.beta_end,
            crop=crop or found.facts.get("patch") or 512,
            mpp=mpp,
            sampling=samplings.get(str(found.facts.get("sampling")), "nearby"),  # type: ignore[arg-type]
            style_images=found.network.config.style.images,
        )
        return cls(found.network, found.first_stage, config, {"source": Path(path).name, **found.facts})

    def compile_networks(self) -> None:
        """U-Net and style encoder."""
        self.network.unet.compile()
        self.network.style.compile()

    @property
    def multiple(self) -> int:
        """Sides of a crop are multiples of this many pixels."""
        return self.first_stage.factor * 2 ** (len(self.config.network.widths) - 1)

    @property
    def crop(self) -> int:
        """Side in pixels of the crops it was trained on."""
        return self.config.crop

    @property
    def mpp(self) -> float | None:
        """µm per pixel of these crops."""
        return self.config.mpp

    # -- conditions
    # ----------------------------------------------------------------------------------------------------

    def planes(self, labels: Tensor | np.ndarray, told: Tensor | None = None) -> Tensor:
        """(B,H,W) classes → layout planes (B,P,H,W) on the model's device; all zeros where ``told`` (B,) is false.

        :class:`InputError` for a class that the model does not have.
        """
        labels = torch.as_tensor(np.ascontiguousarray(labels) if isinstance(labels, np.ndarray) else labels)
        count = self.config.network.classes
        if labels.ndim != 3:
            raise InputError(f"label maps must be (B, H, W), but are {tuple(labels.shape)}")
        # On a GPU they come from training data, which was checked as it was read.
        if labels.device.type == "cpu" and labels.numel() and int(labels.max()) >= count:
            raise InputError(
                f"the layout shows class {int(labels.max())}, the model has {count} ({', '.join(self.config.classes)})"
            )
        planes = F.one_hot(labels.long(), count).permute(0, 3, 1, 2).float()
        if self.config.network.border:
            planes = torch.cat([planes, borders(labels)], dim=1)
        planes = sent(planes, self.device)
        return planes if told is None else planes * sent(told, self.device)[:, None, None, None]

    def check_classes(self, names: Sequence[str]) -> None:
        """:class:`InputError` when data of these classes cannot be layouts of this model."""
        if len(names) != len(self.config.classes):
            raise InputError(
                f"the data has {len(names)} classes, the model {len(self.config.classes)} "
                f"({', '.join(self.config.classes)})",
                fix="Name those to keep with --classes",
            )

    def styles(self, images: Tensor) -> Tensor:
        """Style images (B,n,H,W,3) uint8 → style vectors (B,W)."""
        if images.dtype != torch.uint8 or images.ndim != 5 or images.shape[-1] != 3:
            raise InputError(
                f"style images must be uint8 (B, n, H, W, 3), not {images.dtype} {tuple(images.shape)}"
            )
        pixels = sent(images, self.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        return self.network.styles(pixels)

    def condition(self, labels: Tensor, styles: Tensor | None) -> dict[str, Tensor]:
        """What the denoiser is told for label maps and style vectors (None: the null style)."""
        layout = self.network.mapped(self.planes(labels))
        style = self.network.null_style(len(layout), self.crop) if styles is None else styles
        return {"layout": layout, "style": style}

    def denoiser(self, precision: str = "fp32") -> Any:
        """The U-Net as a denoiser: ``denoiser(x, t, layout=…, style=…)``."""
        return network_denoiser(self.network.unet, self.schedule, self.config.prediction, precision=precision)

    # -- images
    # --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor | np.ndarray,
        styles: Tensor | None,
        sampler: LayoutSampler | str = "fast",
        *,
        seed: int = 0,
        keys: Sequence[Any] | None = None,
        begin: Tensor | None = None,
        own: Tensor | None = None,
        noise: Callable[[int], Tensor] | None = None,
        precision: str = "fp32",
    ) -> Tensor:
        """Images (B, H, W, 3) uint8 of these layouts in these styles.

        Parameters
        ----------
        labels:
            (B, H, W) classes; sides are multiples of :attr:`multiple`.
        styles:
            (B, n, h, w, 3) uint8 style images, (B, W) style vectors that :meth:`styles` gave, or None: no style.
        sampler:
            ``"fast"``, ``"reference"`` or a :class:`LayoutSampler`.
        seed, keys:
            The noise of an image is a function of the seed and of its key, which defaults to its number.
        begin:
            (B, H, W, 3) uint8 images that show the layouts, in about the colours of the styles: where the sampler's
            strength is below 1 it begins at them. None: at noise.
        own:
            The style of ``begin``, as in ``styles``. Where the sampler's ``edit`` is cyclediffusion, an image changes
            by what the styles differ in. None: it is sdedit.
        noise:
            ``noise(step)`` → (B, C, h, w) instead; step −1 is the start.
        """
        config = LayoutSampler.of(sampler)
        labels = torch.as_tensor(np.ascontiguousarray(labels) if isinstance(labels, np.ndarray) else labels)
        if labels.shape[-1] % self.multiple or labels.shape[-2] % self.multiple:
            raise InputError(
                f"layouts of {labels.shape[-1]} × {labels.shape[-2]} px do not fit the network",
                fix=f"Use sides that are multiples of {self.multiple}",
            )
        vectors = self.styles(styles) if styles is not None and styles.ndim == 5 else styles
        condition = self.condition(labels, vectors)
        factor = self.first_stage.factor
        shape = (self.first_stage.channels, labels.shape[1] // factor, labels.shape[2] // factor)
        if noise is None:
            named = list(keys) if keys is not None else list(range(len(labels)))
            noise = ItemNoise(seed, named, shape, condition["layout"].device)
        start = noise(-1).to(condition["layout"])
        around: Callable[[Denoiser], Denoiser] | None = None
        if begin is None:
            config = config.replace(strength=1.0)
        elif config.strength < 1:
            clean = self.first_stage.latents(self.pixels(begin))
            drawn, start = start, self.schedule.add_noise(clean, start, config.times(self.schedule)[0])
            if own is not None and config.keeps:
                past = condition | {"style": self.styles(own) if own.ndim == 5 else own}
                plain = self.denoiser(precision)
                around = partial(
                    anchored, source=plain, known=clean, noise=drawn, schedule=self.schedule, condition=past
                )
        latents = self.sampled(start, condition, config, noise, precision, around=around)
        images = self.first_stage.images(latents).float().clamp(-1, 1)
        scaled = (images + 1) * 127.5
        values = scaled.floor() if config.published else scaled.round()
        return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def sampled(
        self,
        start: Tensor,
        condition: Mapping[str, Tensor],
        config: LayoutSampler,
        noise: Callable[[int], Tensor] | None = None,
        precision: str = "fp32",
        *,
        around: Callable[[Denoiser], Denoiser] | None = None,
    ) -> Tensor:
        """Latents (B, C, h, w) from noise; the style of ``condition`` is guided against the null style."""
        null = {"style": self.network.null_style(1, self.crop)}
        if self.config.network.style.aggregator == "none":
            config = config.replace(guidance_scale=1.0)  # both halves would be the same
        denoiser = self.denoiser(precision)
        if config.published and config.guidance_scale != 1:
            denoiser = column_guided(denoiser, null, config.guidance_scale, self.schedule)
            config = config.replace(guidance_scale=1.0)
        return sample(
            denoiser,
            start,
            self.schedule,
            config,
            noise=noise,
            condition=condition,
            null_condition=null,
            around=around,
        )


def borders(labels: Tensor, reach: float = 16.0) -> Tensor:
    """(B,H,W) classes → (B,1,H,W): distance in pixels to the nearest pixel of another class, over ``reach``, at most
    1; 1 where there is one class alone."""
    out = []
    for each in labels.cpu().numpy().astype(np.uint8):
        edge = np.zeros(each.shape, bool)
        across, along = each[:, 1:] != each[:, :-1], each[1:] != each[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= along
        edge[:-1] |= along
        if not edge.any():
            out.append(np.ones(each.shape, np.float32))
            continue
        distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5)
        out.append(np.minimum(distance / reach, 1.0).astype(np.float32))
    return torch.from_numpy(np.stack(out))[:, None]
