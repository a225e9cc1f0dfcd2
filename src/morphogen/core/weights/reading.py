"""Reading weight files of any origin without running what is in them.

safetensors as they are; torch files with ``weights_only=True``; where that refuses, tensors alone through
:mod:`morphogen.core.weights.unpickler`. A file that is none of these is named for what it is.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import CheckpointError
from morphogen.core.weights.unpickler import instructions, read_inertly, read_legacy_inertly

_MAX_PLACES = 1_000_000  # walked in a file


@dataclass(frozen=True)
class WeightFile:
    """Content of a weight file. ``foreign``: classes that the file names and that were left inert."""

    path: Path
    content: Any
    foreign: tuple[str, ...] = ()

    def section(self, name: str) -> dict[str, Tensor] | None:
        """The tensors under one top-level key (``"model"``, ``"ema"``, ``"state_dict"``), or None."""
        value = self.content.get(name) if isinstance(self.content, Mapping) else None
        found = only_tensors(value) if isinstance(value, Mapping) else {}
        return found or None

    def state(self) -> dict[str, Tensor]:
        """The state dict: under ``state_dict``, else the tensors of the top level."""
        return self.section("state_dict") or (
            only_tensors(self.content) if isinstance(self.content, Mapping) else {}
        )


def only_tensors(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The entries that are tensors."""
    return {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}


def walk_tensors(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists, eight levels deep, with its dotted name.

    Raises :class:`CheckpointError` for containers that hold each other so often that there is no end of them.
    """
    budget = iter(range(_MAX_PLACES))

    def walk(value: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
        if next(budget, None) is None:
            raise CheckpointError(f"it has more than {_MAX_PLACES:,} entries")
        if isinstance(value, Tensor):
            yield prefix, value
        elif depth < 8 and isinstance(value, (Mapping, list, tuple)):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in items:
                yield from walk(item, f"{prefix}.{key}" if prefix else str(key), depth + 1)

    return walk(value, "", 0)


def read_weights(path: Path | str) -> WeightFile:
    """Read a .safetensors, .pt, .pth, .ckpt or .bin file on the CPU; tensors are mapped, not copied.

    Raises :class:`CheckpointError` for a file that is missing, cut short, or no weight file.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError("this is a folder, not a weight file", where=path)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError("this is no ordinary file", where=path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise CheckpointError("there is no such file", where=path) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", where=path) from None
    if start.startswith(b"PK"):
        return _read_zip(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"\x80", b"\x8a")):
        return _read_legacy(path)
    raise CheckpointError(_what_it_is(start), where=path, fix=_fix(start))


def _read_zip(path: Path) -> WeightFile:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any(entry.flag_bits & 1 for entry in entries):
                raise CheckpointError(
                    "the archive is encrypted", where=path, fix="Unpack it with its password"
                )
            program = _program(names)
            if program:
                raise CheckpointError(
                    f"this is {program}, and loading one can run code",
                    where=path,
                    fix="Give its state dict, saved with torch.save or safetensors",
                )
            pickled = [name for name in names if name.endswith("/data.pkl")]
            if not pickled:
                raise CheckpointError(
                    "this is a zip archive, but not a torch file", where=path, fix="Unpack it first"
                )
            instructions(archive, pickled[0])
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError):
        raise _cut_short(path) from None
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    try:
        return WeightFile(path, torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except pickle.UnpicklingError:
        pass  # it names classes that torch does not know to be safe
    except Exception as error:
        if not _names_data(names, path):
            raise _cut_short(path) from error
    try:
        content, foreign = read_inertly(path)
    except Exception as error:  # a pickle can make the reader raise anything
        raise _refused(path, error) from error
    return WeightFile(path, content, foreign)


def _program(names: list[str]) -> str | None:
    """What an archive is that holds a program rather than tensors alone."""
    tops = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in tops and any(name.startswith("code/") for name in tops):
        return "a TorchScript program"
    if "archive_format" in tops or "serialized_exported_program.json" in {*names, *tops}:
        return "an exported program (torch.export)"
    return None


def _refused(path: Path, error: Exception) -> CheckpointError:
    line = " ".join(str(error)[:400].split())
    return CheckpointError(
        f"the file is damaged or not a checkpoint ({line[:120]})", where=path, fix="Download it again"
    )


def _names_data(names: list[str], path: Path) -> bool:
    """Whether every entry of the archive can be read in full."""
    try:
        with zipfile.ZipFile(path) as archive:
            last = max((archive.getinfo(name) for name in names), key=lambda info: info.header_offset)
            archive.read(last)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return False
    return True


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors.torch import load_file

    try:
        return WeightFile(path, load_file(path))
    except Exception as error:
        raise _cut_short(path) from error


def _read_legacy(path: Path) -> WeightFile:
    """torch < 1.6: pickles one after the other."""
    try:
        content, foreign = read_legacy_inertly(path)
    except Exception as error:
        raise CheckpointError(
            "this pickle is not a plain torch state dict, or is cut short, and is not opened: a pickle can run code",
            where=path,
            fix="If you trust it, load it with the torch that wrote it and save the state dict again",
        ) from error
    return WeightFile(path, content, foreign)


def _cut_short(path: Path) -> CheckpointError:
    return CheckpointError(
        f"the file is damaged or cut short ({path.stat().st_size} bytes)", where=path, fix="Download it again"
    )


def _what_it_is(start: bytes) -> str:
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "this is a web page, not the weights (the download failed)"
    return "this is not a weight file (neither safetensors nor torch)"


def _fix(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "Fetch it with `git lfs pull`"
    return (
        "Download it again"
        if not start or start.lstrip().startswith(b"<")
        else "Give a .safetensors or .pt file"
    )
