"""Where encoders come from: lazyslide-models, timm, transformers, or a module in hand."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.core.errors import ConfigError, DependencyError, WeightsError, nearest
from morphogen.slides.encoders import hub
from morphogen.slides.encoders.plain import complete, plain_file, tensors_only
from morphogen.slides.encoders.spec import FILENAME, HALF, IMAGENET, TAKES_FILE, EncoderSpec


@dataclass
class Loaded:
    """A network with its preprocessing, before it is placed on a device."""

    spec: EncoderSpec
    forward: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]
    module: nn.Module | None
    wrapper: Any = None  # a model of lazyslide-models, which may hold more than one network
    gradient: Callable[[Tensor], Tensor] | None = (
        None  # float (N, 3, H, W) in 0…255 → (N, D), where forward has none
    )

    def place(self, device: torch.device) -> None:
        """Move every network to ``device``."""
        owner = self.wrapper if hasattr(self.wrapper, "to") else self.module
        if owner is not None:
            owner.to(device)


def from_module(module: nn.Module, spec: EncoderSpec) -> Loaded:
    """Any module on normalised float images (N, 3, input_px, input_px)."""
    return Loaded(spec, module, normaliser(spec), module)


def from_lazyslide(spec: EncoderSpec, weights: Path | None, tokens: bool, trust: bool) -> Loaded:
    """An encoder of lazyslide-models through its own loading code."""
    from lazyslide_models import MODEL_REGISTRY

    cls: Any = MODEL_REGISTRY[spec.name]
    filename = FILENAME.get(spec.name)
    if spec.runs_code and not trust:
        raise WeightsError(
            "loading it runs Python code that comes with its weights",
            where=f"encoder '{spec.name}'",
            fix=f"If you trust {weights or spec.repository}, pass --trust-remote-code (trust_remote_code=True)",
        )
    with _explained(spec, weights), contextlib.ExitStack() as stack:
        stack.enter_context(complete())
        if not trust:
            stack.enter_context(tensors_only())
        if weights is None:
            if spec.gated and not hub.has_token() and not hub.cached(spec.repository or "", filename):
                raise hub.missing_weights(spec, "no HF_TOKEN is set")
            model: Any = cls()
        else:
            hub.check_weights(weights, spec.name, spec.repository, filename)
            if weights.is_file() and spec.name in TAKES_FILE and spec.name != "keep":
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="morphogen-weights-")))
                plain = weights if trust else plain_file(weights, place / weights.name)
                model = cls(model_path=str(plain))
            elif weights.is_file() and filename is None and not (weights.parent / "config.json").is_file():
                raise WeightsError(
                    f"'{spec.name}' cannot be built from its weights file alone",
                    where=weights,
                    fix="Keep the repository's config.json beside it, or pass the folder",
                )
            else:
                stack.enter_context(
                    hub.presented(spec.repository or spec.name, weights, filename, trust=spec.runs_code)
                )
                model = cls()
    network = model.model if isinstance(model.model, nn.Module) else None
    forward = _dense(model) if tokens else model.encode_image
    transform = model.get_transform()
    return Loaded(spec, forward, transform if transform is not None else _as_is, network, model)


def spec_of(name: str) -> EncoderSpec:
    """Specification of ``timm:NAME`` or ``transformers:FOLDER_OR_ID`` without weights."""
    kind, _, model = name.partition(":")
    if kind == "transformers":
        return _transformers_spec(name, model)
    import timm

    if "/" in model:  # a repository of the hub: its configuration comes with the weights
        repository = model.removeprefix("hf-hub:").removeprefix("hf_hub:")
        return EncoderSpec(name=name, kind="timm", mean=None, std=None, tokens=True, repository=repository)
    if not timm.is_model(model.split(".")[0]):
        hint = nearest(model, timm.list_models())
        raise ConfigError(f"timm has no model '{model}'.{hint}", where="--encoder")
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(model)
    shape = known.input_size if known is not None else (3, 224, 224)
    mean, std = (tuple(known.mean), tuple(known.std)) if known is not None else IMAGENET
    return EncoderSpec(
        name=name,
        kind="timm",
        input_px=int(shape[-1]),
        mean=mean,
        std=std,
        tokens="vit" in model or "deit" in model or "beit" in model or "eva" in model,
        licence=(known.license if known is not None else None) or "see timm",
        repository=f"timm/{model}",
        description="timm model trained on natural images",
    )


def from_prefix(name: str, spec: EncoderSpec, weights: Path | None, tokens: bool, trust: bool) -> Loaded:
    """``timm:NAME`` (pretrained, or with a state dict or folder given) or ``transformers:FOLDER_OR_ID``."""
    kind, _, model = name.partition(":")
    if kind == "transformers":
        return _from_transformers(spec, Path(weights) if weights else None, model, tokens, trust)
    return _from_timm(spec, model, weights, tokens)


def _from_timm(spec: EncoderSpec, model: str, weights: Path | None, tokens: bool) -> Loaded:
    import timm
    from timm.data import resolve_model_data_config

    with _explained(spec, weights):
        if weights is None:
            identity = f"hf-hub:{spec.repository}" if "/" in model else model
            with tensors_only():
                network = timm.create_model(identity, pretrained=True, num_classes=0)
        elif weights.is_dir():
            hub.check_weights(weights, spec.name, spec.repository, None)
            with tensors_only(), hub.shown(weights) as folder:
                network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        else:
            hub.check_weights(weights, spec.name, spec.repository, None)
            network = timm.create_model(model, pretrained=False, num_classes=0)
            missing = network.load_state_dict(
                read_state(weights, network.state_dict()), strict=False
            ).missing_keys
            if missing:
                raise WeightsError(
                    f"the file lacks {len(missing)} tensors, first '{missing[0]}'", where=weights
                )
    facts = resolve_model_data_config(network)
    spec = replace(
        spec,
        input_px=int(facts["input_size"][-1]),
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        width=int(network.num_features),
    )

    def all_tokens(x: Tensor) -> Tensor:
        out = network.forward_features(x)
        return torch.cat([out[:, :1], out[:, network.num_prefix_tokens :]], dim=1)

    return Loaded(spec, all_tokens if tokens else network, normaliser(spec), network)


def _transformers_spec(name: str, model: str) -> EncoderSpec:
    folder = Path(model).expanduser()
    config: dict[str, Any] = hub.read_config(folder)
    process: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        from morphogen.core.files import read_json

        process = read_json(folder / "preprocessor_config.json")
    size = process.get("crop_size", process.get("size", config.get("image_size", 224)))
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge", 224))
    mean = tuple(process.get("image_mean", IMAGENET[0] if config else HALF[0]))
    std = tuple(process.get("image_std", IMAGENET[1] if config else HALF[1]))
    width = config.get("hidden_size")
    return EncoderSpec(
        name=name,
        kind="transformers",
        input_px=int(size),
        mean=mean,
        std=std,
        width=int(width) if isinstance(width, int) else None,
        tokens=True,
        repository=None if folder.is_dir() else model,
        description="vision transformer folder",
    )


def _from_transformers(
    spec: EncoderSpec, weights: Path | None, model: str, tokens: bool, trust: bool
) -> Loaded:
    """Class token (and patch tokens): the last hidden state, as published for Phikon and DINOv2."""
    from transformers import AutoConfig, AutoModel

    local = weights if weights is not None else Path(model).expanduser()
    where = str(local) if weights is not None or local.is_dir() else model
    if Path(where).is_dir():
        hub.check_weights(Path(where), spec.name, None, None)
    elif "/" not in model or Path(model).is_absolute():
        raise WeightsError("there is no such model folder", where=model)
    with _explained(spec, weights), contextlib.ExitStack() as stack:
        stack.enter_context(complete())
        if not trust:
            stack.enter_context(tensors_only())
            if Path(where).is_dir():
                where = str(stack.enter_context(hub.shown(Path(where))))
        config = AutoConfig.from_pretrained(where, trust_remote_code=trust)
        extra = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        network = AutoModel.from_pretrained(where, trust_remote_code=trust, **extra)
    hidden = int(config.hidden_size)
    registers = int(getattr(config, "num_register_tokens", 0))

    def states(x: Tensor) -> Tensor:
        out = network(pixel_values=x).last_hidden_state
        return torch.cat([out[:, :1], out[:, 1 + registers :]], dim=1) if registers else out

    forward = states if tokens else lambda x: states(x)[:, 0]
    spec = replace(spec, width=hidden)
    return Loaded(spec, forward, normaliser(spec), network)


def normaliser(spec: EncoderSpec) -> Callable[[Tensor], Tensor]:
    """uint8 (N, 3, H, W) → float, resized to ``input_px`` (bilinear, antialiased; only if needed) and normalised."""
    mean = 255 * torch.tensor(spec.mean or IMAGENET[0]).view(3, 1, 1)
    std = 255 * torch.tensor(spec.std or IMAGENET[1]).view(3, 1, 1)

    def prepare(images: Tensor) -> Tensor:
        x = images.to(torch.float32, copy=True)
        if x.shape[-2:] != (spec.input_px, spec.input_px):
            x = nn.functional.interpolate(x, (spec.input_px, spec.input_px), mode="bilinear", antialias=True)
        return x.sub_(mean.to(x)).div_(std.to(x))

    return prepare


def read_state(path: Path, expected: Collection[str]) -> dict[str, Tensor]:
    """The tensors of the names ``expected`` from a file of weights, whatever is wrapped around them; nothing in it
    is run."""
    from morphogen.core.errors import CheckpointError
    from morphogen.core.weights.finding import find_by_names
    from morphogen.core.weights.reading import read_weights

    try:
        return find_by_names(read_weights(path), expected).state
    except CheckpointError as error:
        raise WeightsError(error.what, where=path, fix=error.fix) from error


def _dense(model: Any) -> Callable[[Tensor], Tensor]:
    def tokens(x: Tensor) -> Tensor:
        out = model.encode_image_dense(x)
        return torch.cat([out.cls_token[:, None], out.patch_tokens], dim=1)

    return tokens


def _as_is(images: Tensor) -> Tensor:
    return images


@contextlib.contextmanager
def _explained(spec: EncoderSpec, weights: Path | None) -> Iterator[None]:
    """One sentence for whatever a library raises while it loads weights."""
    from morphogen.core.errors import MorphogenError

    try:
        yield
    except MorphogenError:
        raise
    except ImportError as error:
        raise DependencyError(_line(error), where=f"encoder '{spec.name}'") from error
    except Exception as error:
        if weights is None:
            raise hub.missing_weights(spec, _line(error)[:120].split(". ")[0]) from error
        raise WeightsError(
            f"these are not the weights of '{spec.name}' ({_line(error)})",
            where=weights,
            fix=f"Download them again: hf download {spec.repository} --local-dir FOLDER",
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
