"""Reading one component folder of the diffusers / transformers layout, with errors that say what to do."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from morphogen.core.errors import CheckpointError
from morphogen.core.reading.documents import read_document, shown

_Width = Annotated[int, Field(ge=0, le=1 << 17)]
_Widths = _Width | list[_Width | None] | None
_Layers = Annotated[int, Field(ge=0, le=256)]
_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_Many = Annotated[int, Field(ge=0, le=1 << 24)]


class ComponentFile(BaseModel):
    """What a component's config.json may say of its sizes: what any published network has, many times over. Anything
    more would take the machine down before its weights are found not to fit."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)
    class_name: str | None = Field(None, alias="_class_name")
    architectures: list[str] | None = None
    layers_per_block: _Layers | list[_Layers] | None = None
    transformer_layers_per_block: _Layers | list[Any] | None = None
    num_hidden_layers: _Layers | None = None
    num_layers: _Layers | None = None
    block_out_channels: Annotated[list[_Width], Field(max_length=16)] | None = None
    down_block_types: Annotated[list[str], Field(max_length=16)] | None = None
    up_block_types: Annotated[list[str], Field(max_length=16)] | None = None
    in_channels: _Width | None = None
    out_channels: _Width | None = None
    latent_channels: _Width | None = None
    norm_num_groups: _Width | None = None
    cross_attention_dim: _Widths = None
    attention_head_dim: _Widths = None
    vq_embed_dim: _Width | None = None
    hidden_size: _Width | None = None
    intermediate_size: _Width | None = None
    num_attention_heads: _Widths = None
    num_vq_embeddings: _Many | None = None
    vocab_size: _Many | None = None
    max_position_embeddings: _Many | None = None
    scaling_factor: float | None = None
    factor: Annotated[int, Field(ge=1, le=256)] = 1  # of a pixel first stage


def component_file(folder: Path | str) -> ComponentFile:
    """The config.json of a component folder, checked; :class:`CheckpointError` where it is missing or another thing."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            "no component can be read here: there is no config.json",
            where=folder,
            fix="Give a folder with a config.json",
        )
    return read_document(path, ComponentFile, error=CheckpointError)


def class_name(folder: Path | str, choices: Iterable[str] = ()) -> str:
    """The class that a component folder's config.json names; one of ``choices`` where they are given."""
    config = component_file(folder)
    name = config.class_name or next(iter(config.architectures or []), None)
    known = list(choices)
    if name is None or (known and name not in known):
        raise CheckpointError(
            f"config.json names the class {shown(name)}, not one of {', '.join(known)}", where=folder
        )
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars, which would stand between ours; they are set back afterwards."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _check_arguments(config: ComponentFile, kind: Any, folder: Path) -> None:
    """Refuse numbers, switches and names of a config.json that are not what the class's constructor declares: its
    layers would take them and fail when they are first used."""
    arguments = inspect.signature(kind.__init__).parameters
    given = {**config.model_dump(), **(config.model_extra or {})}
    for name, argument in arguments.items():
        wanted, value = (
            _PLAIN.get(str(getattr(argument.annotation, "__name__", argument.annotation))),
            given.get(name),
        )
        if wanted is None or value is None:
            continue
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            raise CheckpointError(
                f"config.json says {name} {shown(value)}, which is no {argument.annotation.__name__}",
                where=folder,
                fix="Copy it again",
            )


def component(folder: Path | str, kind: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """``kind.from_pretrained(folder)`` from safetensors alone, in eval mode, nothing fetched from a
    network."""
    folder = Path(folder)
    _check_arguments(component_file(folder), kind, folder)
    if not any(folder.glob("*.safetensors")):
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")]
        raise CheckpointError(
            f"there are no safetensors here{', only ' + pickles[0].name if pickles else ''}",
            where=folder,
            fix="Pickled weights can run code, so they are not read from model folders: take the safetensors "
            "version, or convert them where you trust them"
            if pickles
            else "Copy the whole folder",
        )
    try:
        with _quiet():
            module, found = kind.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=dtype,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # every library raises its own kind for a file that does not fit
        line = " ".join(str(error)[:1000].split())
        raise CheckpointError(
            f"the weights do not load ({line[:120]})", where=folder, fix="Copy the whole folder again"
        ) from error
    state = module.state_dict()
    missing = sorted({key for key in found["missing_keys"] if key in state})
    missing += [key for key, value in state.items() if value.is_meta and key not in missing]
    if missing:  # the libraries would leave them without values, or draw them at random
        raise CheckpointError(
            f"its weights lack {len(missing)} tensors, first '{missing[0][:80]}'",
            where=folder,
            fix="Copy the whole folder",
        )
    with torch.no_grad():
        # Tensors of a mapped file lie anywhere; CPU kernels choose their path, and round, by alignment. Copies make
        # a loaded network give the same bits as the one that was saved.
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.clone()
    return module.eval()
