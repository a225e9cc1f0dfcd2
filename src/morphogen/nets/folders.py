"""Reading one component folder of the diffusers / transformers layout, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from morphogen.core.errors import CheckpointError, InputError
from morphogen.core.files import read_json


def class_name(folder: Path | str, choices: Iterable[str] = ()) -> str:
    """The class that a component folder's config.json names; one of ``choices`` where they are given."""
    path = Path(folder) / "config.json"
    try:
        config = read_json(path)
    except InputError as error:
        raise CheckpointError(
            f"no component can be read here ({error.what})",
            where=folder,
            fix="Give a folder with a config.json",
        ) from None
    config = config if isinstance(config, dict) else {}
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    known = list(choices)
    if name is None or (known and name not in known):
        raise CheckpointError(
            f"config.json names the class {name!r}, not one of {', '.join(known)}", where=folder
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


def component(folder: Path | str, kind: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """``kind.from_pretrained(folder)`` from safetensors alone, in eval mode, nothing fetched from a
    network."""
    folder = Path(folder)
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
            module = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, **options
            )
    except Exception as error:  # every library raises its own kind for a file that does not fit
        line = " ".join(str(error).split())
        raise CheckpointError(f"the weights do not load ({line[:200]})", where=folder) from error
    with torch.no_grad():
        # Tensors of a mapped file lie anywhere; CPU kernels choose their path, and round, by alignment. Copies make
        # a loaded network give the same bits as the one that was saved.
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data = tensor.data.clone()
    return module.eval()
