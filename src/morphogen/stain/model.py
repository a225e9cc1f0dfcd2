"""``StainTransfer``: the components of virtual staining, in the manner of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.errors import ConfigError, nearest
from morphogen.core.running.transfers import sent
from morphogen.diffusion import ItemNoise, expectation, network_denoiser, sample
from morphogen.diffusion.sampler import spaced
from morphogen.nets import FirstStage, TextEncoder
from morphogen.slides import Encoder, get_encoder
from morphogen.stain.config import ModelConfig, SamplerConfig
from morphogen.stain.recipes import folder as folders
from morphogen.stain.recipes.network import HE, StainNetwork, target_stage, token_encoder
from morphogen.stain.recipes.output import StainOutput as StainOutput
from morphogen.stain.recipes.output import stain_output
from morphogen.stain.recipes.sampling import image_effects, invert, item_noise, local_unit, model_schedule
from morphogen.stain.targets.values import intensities, spread
from morphogen.tasks.pretrained import Pretrained
from morphogen.tasks.streams.noise import OF_IMAGE


class StainTransfer(Pretrained):
    """H&E → immunostain.

    ``model(images)`` stains a batch of equal crops; :func:`morphogen.stain.stain_image` and
    :func:`morphogen.stain.stain_slide` cut larger ones into windows.

    >>> import torch
    >>> from morphogen.demo.workspace import stain_model  # the small model that comes with the package
    >>> model = StainTransfer.from_pretrained(stain_model(), device="cpu")
    >>> crops = torch.full((1, 64, 64, 3), 220, dtype=torch.uint8)
    >>> model(crops, "mean").images.shape
    torch.Size([1, 64, 64, 3])

    Parameters
    ----------
    network:
        U-Net with label, null context and projection.
    first_stage:
        Pixels ↔ latents.
    config:
        What the model is.
    encoder:
        Token encoder of the H&E crop; ``None`` builds ``config.encoder`` when it is first needed.
    text:
        CLIP text encoder that the null context came from, kept to be saved again.
    crop, mpp:
        Side in pixels and µm/px of the crops it was trained on.
    facts:
        Provenance, saved with the model.
    mean:
        Regression around which this model's samples scatter, for ``config.residual``; it shares the first stage and
        the tokens.
    """

    kind = folders.KIND
    config: ModelConfig

    def __init__(
        self,
        network: StainNetwork,
        first_stage: FirstStage,
        config: ModelConfig,
        *,
        encoder: Encoder | None = None,
        text: TextEncoder | None = None,
        crop: int = 512,
        mpp: float | None = None,
        facts: dict[str, Any] | None = None,
        mean: StainTransfer | None = None,
    ) -> None:
        self.mean = mean
        self.network, self.first_stage, self.config, self.text = network, first_stage, config, text
        self.crop, self.mpp, self.facts = crop, mpp, dict(facts or {})
        self.schedule = model_schedule(config)
        self.target_stage = target_stage(config, first_stage)
        self._encoder = encoder

    # -- what the floor asks for

    def components(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "first_stage": self.first_stage,
            "text": self.text,
            "mean": self.mean,
        }

    def modules(self) -> dict[str, Any]:
        """Laid out as a diffusers pipeline, where all its components are there."""
        mean = None if self.mean is None else self.mean.network
        return folders.modules(self.network, self.first_stage, self.config, self.text, mean)

    def saved(self) -> dict[str, Any]:
        encoder = self._encoder  # not built only to be named
        return {
            "encoder": encoder.spec.to_dict() if encoder is not None else {"name": self.config.encoder},
            "preprocessing": {"crop": self.crop, "mpp": self.mpp, "range": [-1, 1]},
            "training": self.facts,
            # A diffusers pipeline would leave the regression out and paint residuals.
            **(
                {"documents": folders.index(self.modules())}
                if self.mean is None
                else {"mean_stains": self.mean.stains}
            ),
        }

    def hashed(self) -> tuple[Any, ...]:
        encoder = self.encoder.identity() if self.encoder is not None else "none"
        mean = [] if self.mean is None else [self.mean.stains, dict(self.mean.network.state_dict())]
        return (self.config.identity(), dict(self.network.state_dict()), encoder, *mean)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        encoder: str | Path | nn.Module | Encoder | None = None,
        encoder_weights: Path | str | None = None,
        device: str | torch.device = "cpu",
        **changes: Any,
    ) -> Self:
        """Load a stain model, or the pipeline folder published with HistDiST (local folder or hub id).

        Parameters
        ----------
        encoder:
            Token encoder other than the saved one: a name, a transformers folder, a module. A published
            folder does not say which it needs; Phikon is taken, as in the paper.
        encoder_weights:
            Weights of a named encoder on disk.
        changes:
            Settings of :class:`~morphogen.stain.config.ModelConfig` to override, e.g.
            ``prediction="epsilon"`` for a pipeline trained without zero-SNR and v.
        """
        if isinstance(encoder, str):
            changes["encoder"] = encoder
        if encoder_weights is not None:
            changes["encoder_weights"] = str(encoder_weights)
        model = cls._of(folders.read(folder, changes))
        if encoder is not None and not isinstance(encoder, str):
            model._encoder = get_encoder(encoder, tokens=True, device="cpu")
        return model.to(device)

    @classmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        return cls._of(folders.read(read.path, options))

    @classmethod
    def _of(cls, parts: folders.Parts) -> Self:
        made: dict[str, Any] = {"crop": parts.crop, "mpp": parts.mpp}
        mean = None
        if parts.mean is not None:
            mean = cls(parts.mean[0], parts.first_stage, parts.mean[1], **made)
        network, config = parts.network, parts.config
        return cls(network, parts.first_stage, config, text=parts.text, facts=parts.facts, mean=mean, **made)

    @property
    def stains(self) -> tuple[str, ...]:
        """Target stains, in label order."""
        return self.config.stains

    # -- conditions

    @property
    def encoder(self) -> Encoder | None:
        """The token encoder, built on first use; ``None`` for a model without one."""
        if self._encoder is None and self.config.encoder != "none":
            self._encoder = token_encoder(self.config, self.device)
        return self._encoder

    def tokens(self, images: Tensor) -> Tensor | None:
        """uint8 (B, H, W, 3) → encoder tokens (B, T, d) on the model's device; ``None`` without an encoder."""
        encoder = self.encoder
        return None if encoder is None else encoder(images).to(self.device)

    def label(self, stain: str | None = None) -> int:
        """Label of a target stain; :class:`ConfigError` when it must be named, or is unknown."""
        if stain is None:
            if len(self.stains) > 1:
                raise ConfigError(
                    f"this model makes several stains: {', '.join(self.stains)}", fix="Name one with --stain"
                )
            return HE + 1
        if stain not in self.stains:
            raise ConfigError(
                f"this model has no stain '{stain}', only {', '.join(self.stains)}.{nearest(stain, self.stains)}",
                where="--stain",
            )
        return HE + 1 + self.stains.index(stain)

    def target_pixels(self, images: Tensor) -> Tensor:
        """Targets, uint8 (B, H, W, 3) or intensities (B, H, W, C), → (B, C, H, W) around −1…1 on the model's device; of
        any size, since whole images are looked at too."""
        planes = sent(images, self.device).permute(0, 3, 1, 2)
        return planes.float() / 127.5 - 1 if self.config.target.colour else spread(planes, self.config.target)

    def condition(
        self, latents: Tensor, tokens: Tensor | None, label: int | Tensor, base: Tensor | None = None
    ) -> dict[str, Any]:
        """Conditions of the translation task for H&E latents (B, C, h, w), unscaled mode, and ``base``, what a
        regression says, where it is seen."""
        if self.config.see_mean and base is not None:
            latents = torch.cat([latents, base], dim=1)
        labels = sent(torch.as_tensor(label), self.device).expand(len(latents))
        translate = torch.zeros(len(latents), dtype=torch.bool, device=self.device)
        context, mask = self.network.contexts(tokens, translate)
        return {"image": latents, "context": context, "mask": mask, "label": labels}

    def generation_condition(self, batch: int) -> dict[str, Any]:
        """Conditions of the H&E generation task: null context, no H&E channels."""
        generate = torch.ones(batch, dtype=torch.bool, device=self.device)
        context, mask = self.network.contexts(None, generate)
        labels = torch.full((batch,), HE, device=self.device)
        return {"context": context, "mask": mask, "label": labels}

    @torch.no_grad()
    def expected(
        self, latents: Tensor, tokens: Tensor | None, label: int | Tensor, precision: str = "fp32"
    ) -> Tensor:
        """(B, C, h, w), scaled: the stain of H&E latents (B, C, h, w), unscaled mode, from one evaluation out of a
        blank start: what a regression is trained to give."""
        condition = self.condition(latents, tokens, label)
        blank = latents.new_zeros(len(latents), self.network.channels, *latents.shape[2:])
        return expectation(self.denoiser(precision), blank, self.schedule, condition=condition)

    def base(
        self,
        latents: Tensor,
        tokens: Tensor | None,
        label: int | Tensor,
        precision: str = "fp32",
        mean: StainTransfer | None = None,
    ) -> Tensor | None:
        """What samples scatter around, (B, C, h, w) scaled: the answer of the regression, or of ``mean`` in its place;
        ``None`` without ``config.residual``. ``label`` is this model's."""
        if (mean := mean or self.mean) is None:
            return None
        theirs = sent(torch.tensor([HE, *map(mean.label, self.stains)]), self.device)
        return mean.expected(latents, tokens, theirs[sent(torch.as_tensor(label), self.device)], precision)

    # -- staining

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        sampler: SamplerConfig | str = "fast",
        *,
        stain: str | None = None,
        samples: int = 1,
        seed: int = 0,
        noise: Callable[[int], Tensor] | None = None,
        posterior_noise: Tensor | None = None,
        precision: str = "fp32",
        mean_weight: float = 1.0,
        sample_spread: float = 1.0,
        effect_spread: float = 1.0,
    ) -> StainOutput:
        """Stain a batch of crops.

        Parameters
        ----------
        images:
            (B, H, W, 3) uint8 H&E; sides are multiples of :attr:`multiple`.
        sampler:
            ``"reference"``, ``"fast"``, ``"mean"`` or a :class:`~morphogen.stain.config.SamplerConfig`.
        samples:
            K per image.
        noise:
            ``noise(step)`` → (B·K, C, h, w), K samples of an image in a row; step −1 is the start. Default:
            a stream per image and sample from ``seed``.
        posterior_noise:
            (B, C, h, w) noise of the autoencoder's posterior at the start of an inversion; drawn when not
            given.
        precision:
            ``fp32``, ``bf16`` or ``fp16`` autocast of the network.
        mean_weight, sample_spread, effect_spread:
            See :class:`~morphogen.stain.config.ApplyConfig`.
        """
        sampler = SamplerConfig.of(sampler)
        if self.config.regression:
            sampler = SamplerConfig.mean()  # it knows nothing of noise
        pixels = self.pixels(images)
        encoded = self.first_stage.encode(pixels)
        image = encoded.mode()
        shape = self.network.channels, *image.shape[2:]
        if noise is None:
            keys = [(index, k) for index in range(len(images)) for k in range(samples)]
            noise = item_noise(self.config, seed, keys, shape, image.device)
        denoiser = self.denoiser(precision)
        tokens = self.tokens(images)
        base = self.base(image, tokens, self.label(stain), precision)
        if sampler.inversion_steps and sampler.solver != "mean":
            if not self.config.target.colour:
                raise ConfigError(
                    "a model of channels cannot generate H&E, which inversion needs",
                    where="sampler.inversion_steps",
                    fix="Use --solver fast",
                )
            if posterior_noise is None:
                posterior_noise = ItemNoise(seed, [("posterior", i) for i in range(len(images))], shape)(-1)
            latent = self.first_stage.scaling * encoded.sample(posterior_noise)
            times = spaced(self.schedule, sampler.inversion_steps)
            condition = self.generation_condition(len(latent))
            start = invert(
                denoiser, latent, times, self.schedule, when=sampler.standardise, condition=condition
            ).repeat_interleave(samples, dim=0)
        elif sampler.solver == "mean":
            start = image.new_zeros(len(image) * samples, *shape)  # the centre of the noise: no seed in it
        else:
            start = noise(-1).to(image)
        condition = self.condition(image, tokens, self.label(stain), base)
        condition = {
            key: None if value is None else value.repeat_interleave(samples, dim=0)
            for key, value in condition.items()
        }
        centres = None if base is None else base[:, None]
        spread = self.config.effect_spread * effect_spread
        if centres is not None and (effects := image_effects(self.config, spread)) is not None:
            # The expected stain is that of an image of middling brightness.
            draws = torch.full((len(start),), 0.5) if sampler.solver == "mean" else noise(OF_IMAGE)
            around = effects.applied(centres[:, 0].repeat_interleave(samples, 0), effects.drawn(draws))
            centres = around.unflatten(0, (-1, samples))
            if self.config.see_mean:
                seen = image.repeat_interleave(samples, dim=0)
                condition["image"] = torch.cat([seen, around], dim=1)
        latents = sample(denoiser, start, self.schedule, sampler, noise=noise, condition=condition).unflatten(
            0, (len(images), samples)
        )
        if centres is not None:
            unit = self.unit(centres.flatten(0, 1)).unflatten(0, centres.shape[:2])
            latents = centres + sample_spread * unit * latents
        return self.output(latents, centres, mean_weight)

    @property
    def residual_scale(self) -> float:
        """Unit of what is diffused, in latents."""
        return self.config.residual_scale or 1.0

    def unit(self, base: Tensor) -> Tensor:
        """The same where the regression answers ``base`` (B, C, h, w)."""
        return self.residual_scale * local_unit(self.config, base)

    def denoiser(self, precision: str = "fp32") -> Any:
        """The network as a denoiser of the diffusion core."""
        return network_denoiser(self.network, self.schedule, self.config.output, precision=precision)

    def output(self, latents: Tensor, centres: Tensor | None = None, mean_weight: float = 1.0) -> StainOutput:
        """Decode scaled latents (B, K, C, h, w); a mean of weight below 1 is drawn towards ``centres`` (B, 1 or K, C,
        h, w), what the samples scatter around."""
        pixels = self._decoded(latents)
        mean = pixels.mean(dim=1)
        if centres is not None and mean_weight != 1:
            mean = mean_weight * mean + (1 - mean_weight) * self._decoded(centres).mean(dim=1)
        return stain_output(pixels, mean, latents, self.config.target)

    def _decoded(self, latents: Tensor) -> Tensor:
        """(B, K, C, h, w) → (B, K, C, H, W)."""
        pixels = torch.cat([self.decode(part) for part in latents.flatten(0, 1).split(8)])
        return pixels.unflatten(0, latents.shape[:2])

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return self.first_stage.factor

    @property
    def multiple(self) -> int:
        """Sides of a crop must be multiples of this many pixels."""
        return self.first_stage.factor * 2 ** (len(self.network.latent.unet.config.block_out_channels) - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → colours (B, 3, H, W) in 0…1, or intensities."""
        if not self.config.target.colour:
            return intensities(self.target_stage.images(latents), self.config.target)
        return (self.first_stage.images(latents) / 2 + 0.5).clamp(0, 1)
