"""Files that are either whole or absent.

Everything is written to a temporary name in the same folder, flushed to disk and renamed. A folder of results is
complete when its manifest is there; until then readers must treat it as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, OutputError

_CHUNK = 1 << 20


_UMASK = os.umask(0o022)  # it can only be read by setting it
os.umask(_UMASK)


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """A temporary path beside ``final`` that becomes ``final`` when the block ends well.

    The block may write a file or a folder there. On any error the temporary is removed and ``final`` is left as it
    was. Raises :class:`OutputError` when the place is not writable or the disk is full.
    """
    final = Path(final)
    writable_folder(final.parent)
    # The suffix stays last because libraries choose a format by it.
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.tmp{final.suffix}")
    _remove(temporary)
    try:
        yield temporary
        _sync(temporary)
        if final.is_dir() and temporary.is_dir():
            _swap_folder(temporary, final)
        else:
            os.replace(temporary, final)
        _sync_folder(final.parent)
    except OSError as error:
        _remove(temporary)
        raise output_error(error, final) from error
    except BaseException:
        _remove(temporary)
        raise


def _swap_folder(temporary: Path, final: Path) -> None:
    # A folder cannot be replaced in one step; the old one steps aside so that it is never half there.
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    _remove(old)
    os.rename(final, old)
    os.rename(temporary, final)
    _remove(old)


def _sync(path: Path) -> None:
    paths = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for each in paths:
        # safetensors makes files that only their owner may read; a lab shares its folders.
        mode = each.stat().st_mode
        if (wanted := mode | (0o666 & ~_UMASK)) != mode:
            with suppress(OSError):  # some network shares have no modes
                os.chmod(each, wanted)
        with open(each, "rb") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse; the rename itself is still atomic
        pass
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def output_error(error: OSError, where: Path | str) -> OutputError:
    """The :class:`OutputError` for an operating-system error while writing ``where``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            "the disk is full; nothing was left half-written", where=where, fix="Free space and run it again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError("no permission to write here", where=where, fix="Choose another folder")
    return OutputError(f"cannot be written ({error.strerror or error})", where=where)


def writable_folder(path: Path | str) -> Path:
    """Create ``path`` if needed and make sure that files can be made in it; :class:`OutputError` if not."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise OutputError("a file of this name is in the way of the folder", where=folder) from None
    except NotADirectoryError:
        raise OutputError("part of this path is a file, not a folder", where=folder) from None
    except OSError as error:
        raise output_error(error, folder) from error
    return folder


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: Path | str, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> Path:
    """Write JSON atomically; NumPy scalars and arrays, paths and sets are accepted, NaN and inf become null."""
    return write_text(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; :class:`InputError` when the file is missing or cut short."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"this is not a valid JSON file ({error})", where=path) from None


def plain(value: Any) -> Any:
    """Plain JSON values from nested containers of NumPy, torch, paths, enums and pydantic models."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def file_hash(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_hash(*values: Any) -> str:
    """SHA-256 in hex of arrays, tensors (shape, dtype and bytes), strings and plain containers."""
    digest = hashlib.sha256()
    for value in values:
        _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    if isinstance(value, dict):
        digest.update(b"{")
        for key in sorted(value, key=str):
            _feed(digest, str(key))
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif hasattr(value, "tobytes") and hasattr(value, "dtype") and hasattr(value, "shape"):
        if value.dtype == object:
            _feed(digest, value.tolist())
        else:
            digest.update(f"a{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.tobytes())
    elif isinstance(value, bytes):
        digest.update(b"b" + len(value).to_bytes(8, "little") + value)
    else:
        data = json.dumps(plain(value), sort_keys=True).encode()
        digest.update(b"j" + len(data).to_bytes(8, "little") + data)


class Manifest:
    """The file that says a result folder is complete, with what made it."""

    NAME = "manifest.json"

    @classmethod
    def write(cls, folder: Path | str, *, kind: str, **facts: Any) -> Path:
        """Write the manifest, last of all files, with library versions beside the facts given."""
        from morphogen.core.provenance import versions

        return write_json(Path(folder) / cls.NAME, {"kind": kind, **facts, "versions": versions()})

    @classmethod
    def read(cls, folder: Path | str) -> dict[str, Any] | None:
        """The manifest, or ``None`` when the folder is not complete."""
        path = Path(folder) / cls.NAME
        if not path.is_file():
            return None
        try:
            value = read_json(path)
        except InputError:
            return None
        return value if isinstance(value, dict) else None
