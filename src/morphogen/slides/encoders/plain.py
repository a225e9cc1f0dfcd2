"""Weights for loading code that is not ours: plain tensors in a file that cannot run code.

What other libraries do with a file is theirs to know, so that they are never given one that holds more than a state
dict: a pickled file is read here first (:mod:`morphogen.core.weights`), and where there are other objects or wrappers
around the network's tensors, a copy with the tensors alone is what they see.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from morphogen.core.errors import CheckpointError, WeightsError

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_PERMIT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch refuses to be told both
_lock = threading.RLock()


def plain_file(path: Path, copy: Path) -> Path:
    """``path`` itself where it is a plain state dict or no file of weights, else a copy of its tensors at ``copy``.

    Raises :class:`WeightsError` for a pickle or an archive from which no tensors can be read without running it.
    """
    if not path.is_file():
        raise WeightsError("this is no ordinary file", where=path)
    with open(path, "rb") as file:
        start = file.read(9)
    if not start.startswith((b"PK", b"\x80")) and start[8:9] != b"{":
        return path  # JSON, text, a tokenizer's vocabulary
    from morphogen.core.weights.finding import find_network
    from morphogen.core.weights.reading import read_weights

    try:
        read = read_weights(path)
        found = find_network(read)
    except CheckpointError as error:
        raise WeightsError(error.what, where=path, fix=error.fix) from error
    whole = isinstance(read.content, Mapping) and len(found.state) == len(read.content)
    if whole and not read.foreign and found.state.keys() == read.content.keys():
        return path
    if start[8:9] == b"{":
        from safetensors.torch import save_file

        save_file({key: value.contiguous().clone() for key, value in found.state.items()}, copy)
    else:
        import torch

        torch.save(found.state, copy)
    return copy


@contextmanager
def tensors_only() -> Iterator[None]:
    """While inside, ``torch.load`` unpickles tensors and nothing else, whatever its caller asks for."""
    with _lock:
        before = {name: os.environ.pop(name, None) for name in (_FORCE, _PERMIT)}
        os.environ[_FORCE] = "1"
        try:
            yield
        finally:
            os.environ.pop(_FORCE, None)
            os.environ.update({name: value for name, value in before.items() if value is not None})


@contextmanager
def complete() -> Iterator[None]:
    """While inside, ``from_pretrained`` of transformers refuses files that lack tensors of the network, which it would
    otherwise draw at random. Poolers aside: features are hidden states."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
        model, found = original.__func__(cls, *args, output_loading_info=True, **options)
        missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
        if missing:
            raise WeightsError(
                f"the file lacks {len(missing)} tensors, first '{missing[0][:80]}'",
                where=str(args[0]) if args else None,
            )
        return (model, found) if output_loading_info else model

    with _lock:
        PreTrainedModel.from_pretrained = classmethod(checked)
        try:
            yield
        finally:
            PreTrainedModel.from_pretrained = original
