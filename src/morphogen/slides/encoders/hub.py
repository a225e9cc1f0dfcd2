"""Weights on disk, presented to the loading code of lazyslide-models as if they came from the Hugging Face Hub.

Most encoders of lazyslide-models take no path: they ask the hub's client for a repository. While one is built, the
client is pointed at a temporary cache in which that repository is the user's folder, and told to stay offline. So
every encoder loads from ``--weights`` through its own, unchanged loading code, whatever library that uses.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from morphogen.core.errors import MorphogenError, WeightsError
from morphogen.slides.encoders.plain import plain_file
from morphogen.slides.encoders.spec import EncoderSpec

STANDARD_FILES = (
    "model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".pt2", ".ckpt"}
_REVISION = "0" * 40
_lock = threading.Lock()


@contextmanager
def presented(
    repository: str, weights: Path, filename: str | None = None, trust: bool = False
) -> Iterator[None]:
    """While inside, the hub's client finds ``repository`` at ``weights`` and nothing else, without network.

    Parameters
    ----------
    repository:
        Hub id that the loading code asks for, e.g. ``"owkin/phikon"``.
    weights:
        Folder as downloaded from the hub, or the weights file alone where it says everything (``filename``) or
        where ``config.json`` lies beside it.
    filename:
        Name of the weights file in the repository where it is not a standard one.
    trust:
        Show the files as they are. Otherwise what is not plain tensors is left out or shown without it
        (:func:`morphogen.slides.encoders.plain.plain_file`).
    """
    from huggingface_hub import constants

    with _lock, tempfile.TemporaryDirectory(prefix="morphogen-hub-") as cache:
        home = Path(cache) / f"models--{repository.replace('/', '--')}"
        snapshot = home / "snapshots" / _REVISION
        snapshot.mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text(_REVISION)
        link(weights, snapshot, filename, trust)
        before = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
        constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = cache, True
        try:
            yield
        finally:
            constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = before


@contextmanager
def shown(weights: Path) -> Iterator[Path]:
    """A temporary folder with the files of a folder of weights, pickled ones as plain tensors."""
    with tempfile.TemporaryDirectory(prefix="morphogen-hub-") as place:
        link(weights, Path(place), None, trust=False)
        yield Path(place)


def link(weights: Path, snapshot: Path, filename: str | None, trust: bool) -> None:
    """Links in ``snapshot`` that make the user's files look like the repository."""
    weights = weights.resolve()
    folder = weights if weights.is_dir() else weights.parent
    files: dict[str, Path] = {}
    if weights.is_dir() or (folder / "config.json").is_file():
        files = {item.name: item for item in folder.iterdir()}
    if weights.is_dir() and filename is not None:
        files[filename] = weights / filename
    if weights.is_file():
        for standard in STANDARD_FILES:  # a neighbour of a standard name must not win over the file named
            files.pop(standard, None)
        usual = "model.safetensors" if weights.suffix == ".safetensors" else "pytorch_model.bin"
        files[filename or usual] = weights
    safe = any(name in files for name in STANDARD_FILES if "safetensors" in name)
    wanted = {filename, weights.name} if filename or weights.is_file() else set()
    for name, path in files.items():
        target = snapshot / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and "/" in (filename or "") and name == (filename or "").split("/")[0]:
            continue  # made above, with the one file in it that is asked for
        if trust or path.is_dir():
            shown = path
        else:
            try:
                shown = plain_file(path, snapshot.parent / f"plain-{len(list(snapshot.iterdir()))}")
            except MorphogenError:
                if name in wanted or path == weights or not safe:
                    raise
                continue  # a pickle beside safetensors is not read, so it need not be there
        target.unlink(missing_ok=True)
        target.symlink_to(shown)


def check_weights(path: Path, encoder: str, repository: str | None, filename: str | None) -> None:
    """Say in one sentence what is missing in ``--weights`` before a library says it in ten."""
    if not path.exists():
        raise WeightsError(f"there are no weights of '{encoder}' here", where=path)
    where_from = f"as downloaded with: hf download {repository} --local-dir FOLDER" if repository else ""
    if path.is_dir():
        wanted = [filename] if filename else list(STANDARD_FILES)
        if not any((path / name).is_file() for name in wanted):
            raise WeightsError(
                f"this folder holds no weights of '{encoder}' ({' or '.join(wanted[:2])})",
                where=path,
                fix=f"Point at the folder {where_from}".strip(),
            )
    elif path.suffix not in WEIGHT_SUFFIXES:
        raise WeightsError(
            f"'{path.suffix}' is not a weights file", where=path, fix=f"Give one of {sorted(WEIGHT_SUFFIXES)}"
        )


def cached(repository: str, filename: str | None = None) -> bool:
    """True when the hub's own cache on this machine holds the weights of ``repository``."""
    from huggingface_hub import try_to_load_from_cache

    names = [filename] if filename else STANDARD_FILES
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def has_token() -> bool:
    """True when a Hugging Face token is set in the environment or was stored by ``hf auth login``."""
    from huggingface_hub import get_token

    return bool(os.environ.get("HF_TOKEN") or get_token())


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder; empty when there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"this is not valid JSON ({error})", where=path) from None
    return value if isinstance(value, dict) else {}


def missing_weights(spec: EncoderSpec, reason: str) -> WeightsError:
    """The error for weights that are not on this machine, with both ways to get them."""
    page = f"https://huggingface.co/{spec.repository}"
    download = "pass --weights FOLDER with a download"
    if spec.gated:
        return WeightsError(
            f"its weights are gated and not on this machine ({reason})",
            where=f"encoder '{spec.name}'",
            fix=f"Ask for access at {page}, then set HF_TOKEN, or {download}",
        )
    return WeightsError(
        f"its weights are not on this machine and could not be downloaded ({reason})",
        where=f"encoder '{spec.name}'",
        fix=f"Connect to the network, or {download} of {page}; 'texture' needs none",
    )
