"""Model folders: morphogen.json, safetensors, and the diffusers layout where there are components.

A folder is complete when its manifest is there. It holds::

    morphogen.json            kind, version, config, what the model room adds (panel, encoder,
    preprocessing, …) model.safetensors         a module of ours          (component "model") unet/,
    first_stage/, …    components that save themselves (diffusers, transformers, first stages) manifest.json
    hashes of all of these, library versions; written last
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from morphogen.core.config import Config
from morphogen.core.errors import CheckpointError, ConfigError
from morphogen.core.files import Manifest, atomic_path, file_hash, read_json, write_json
from morphogen.core.names import inner_path
from morphogen.core.reading.documents import checked, read_document

VERSION = 1
NAME = "morphogen.json"


_REQUIRED: Any = object()


class ModelFile(BaseModel):
    """What morphogen.json must hold; the facts of its room lie beside these."""

    model_config = ConfigDict(extra="allow")
    kind: str
    version: int
    config: dict[str, Any]
    components: list[str] = []


class ManifestFile(BaseModel):
    """What the manifest of a model folder must hold: the hash of each file by its relative path."""

    kind: str
    files: dict[str, str] = {}


@dataclass(frozen=True)
class ModelFolder:
    """A model folder as read. config: plain values, for ``ConfigClass(**config)``. facts: what else was
    saved."""

    path: Path
    kind: str
    config: dict[str, Any]
    facts: dict[str, Any]

    def settings(self, cls: type[Any]) -> Any:
        """The saved configuration as an object of its class; :class:`CheckpointError` where it does not
        fit."""
        try:
            return cls(**self.config)
        except ConfigError as error:
            raise CheckpointError(
                f"its configuration does not fit ({error})", where=self.path / NAME
            ) from error

    def fact(self, name: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """What a room saved beside the configuration, as ``kind``: a pydantic model or any type that pydantic knows,
        read strictly. :class:`CheckpointError` where it is something else, or is missing and has no ``default``."""
        if name not in self.facts:
            if default is not _REQUIRED:
                return default
            raise CheckpointError(f"'{name}' is missing", where=self.path / NAME, fix="Copy it again")
        where = f"{self.path / NAME}, {name}"
        return checked(self.facts[name], kind, where=where, error=CheckpointError, fix="Copy it again")

    def component(self, name: str) -> Path:
        """The folder of a component that saved itself."""
        path = self.path / inner_path(name, where=self.path, error=CheckpointError)
        if not path.is_dir():
            raise CheckpointError(
                f"the component '{name}' is missing", where=self.path, fix="Copy the whole folder"
            )
        return path

    def state(self, name: str = "model") -> dict[str, Tensor]:
        """Parameters of a module of ours."""
        from safetensors.torch import load_file

        path = self.path / f"{name}.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            raise CheckpointError(
                f"{path.name} is missing", where=self.path, fix="Copy the whole folder"
            ) from None
        except Exception as error:
            raise CheckpointError(
                "the file is damaged or cut short", where=path, fix="Copy it again"
            ) from error

    def restore(self, module: nn.Module, name: str = "model") -> nn.Module:
        """Load saved parameters into a module that fits them exactly; returns it in eval mode."""
        try:
            module.load_state_dict(self.state(name))
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise CheckpointError(
                f"its weights do not fit its configuration ({line[:200]})",
                where=self.path / f"{name}.safetensors",
            ) from error
        return module.eval()


def save_model(
    folder: Path | str,
    modules: nn.Module | Mapping[str, Any],
    config: Config,
    *,
    kind: str,
    documents: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Write a model folder, whole or not at all; an existing one is replaced.

    modules: one module, or components by name. What has ``save_pretrained`` saves itself into a folder of
    its name; other modules become NAME.safetensors, in float32 or the dtype they have. kind: what the
    folder is, for the room that reads it ("expression", "stain", …). facts: anything JSON can hold; named
    arguments of morphogen.json. documents: more JSON files by name (model_index.json).
    """
    folder = Path(folder)
    components = {"model": modules} if isinstance(modules, nn.Module) else dict(modules)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_json(
            temporary / NAME,
            {
                "kind": kind,
                "version": VERSION,
                "config": config.to_dict(),
                "components": list(components),
                **facts,
            },
        )
        for name, module in components.items():
            if hasattr(module, "save_pretrained"):
                (temporary / name).mkdir()
                module.save_pretrained(temporary / name)
            else:
                _save_state(module, temporary / f"{name}.safetensors")
        for name, content in (documents or {}).items():
            write_json(temporary / name, content)
        _forget_origins(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): file_hash(path) for path in files}
        Manifest.write(temporary, kind=kind, files=hashes)
    return folder


def _forget_origins(folder: Path) -> None:
    """The libraries note in config.json which folder of this machine a component was read from: nobody else's business,
    and no two copies of a model would be alike."""
    for path in folder.rglob("config.json"):
        facts = read_json(path)
        if isinstance(facts, dict):
            facts.pop("_name_or_path", None)
        write_json(path, facts)


def _save_state(module: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    # Clones, because safetensors refuses parameters that share memory.
    save_file(
        {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}, path
    )


def load_model(folder: Path | str, kind: str | None = None, *, verify: bool = False) -> ModelFolder:
    """Read a model folder (a path, or a hub id ``owner/name``).

    kind: refuse any other. verify: compare every file with the hash in the manifest (reads everything once).
    """
    path = resolve_folder(folder)
    if not (path / NAME).is_file():
        raise CheckpointError(
            f"this is not a model folder of ours: there is no {NAME}",
            where=path,
            fix="See `morphogen checkpoint info` and `morphogen checkpoint import`",
        )
    listed = path / Manifest.NAME
    if not listed.is_file():
        raise CheckpointError(
            "the model folder is incomplete: its manifest is missing", where=path, fix="Copy it again"
        )
    files = read_document(listed, ManifestFile, error=CheckpointError).files
    values = dict(read_document(path / NAME, ModelFile, error=CheckpointError))
    found, version, config = values.pop("kind"), values.pop("version"), values.pop("config")
    values.pop("components")
    if not 1 <= version <= VERSION:
        raise CheckpointError(
            f"it has format version {version}, and this morphogen reads up to {VERSION}",
            where=path,
            fix="Update morphogen",
        )
    if kind is not None and found != kind:
        raise CheckpointError(f"this is a model of kind '{found}', not '{kind}'", where=path)
    for name, expected in files.items():
        inner_path(name, where=listed, error=CheckpointError)
        if not (path / name).is_file():
            raise CheckpointError(f"{name} is missing", where=path, fix="Copy the whole folder")
        if verify and file_hash(path / name) != expected:
            raise CheckpointError(
                f"{name} is damaged: its hash is not the manifest's", where=path, fix="Copy it again"
            )
    return ModelFolder(path, found, config, values)


def resolve_folder(folder: Path | str) -> Path:
    """A local folder as it is; a hub id ``owner/name`` (``owner/name@revision``) fetched into the hub's
    cache.

    Only safetensors, JSON and text are fetched, never pickles. With HF_HUB_OFFLINE=1 only the cache is read.
    """
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    name, _, revision = str(folder).partition("@")
    parts = name.split("/")
    if path.exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", ".."):
        raise CheckpointError(
            "there is no such model folder",
            where=folder,
            fix="Give a folder, or a hub id of the form owner/name",
        )
    import huggingface_hub

    try:
        fetched = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"]
        )
    except Exception as error:  # offline, unknown, private and gated all come as different exceptions
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"there is no such local folder, and it could not be fetched as a hub id ({line[:120]})",
            where=folder,
            fix="Check the name, go online, or download the folder and give its path",
        ) from None
    return Path(fetched)
