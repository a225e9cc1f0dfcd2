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
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, MorphogenError, OutputError
from morphogen.core.writing.replacing import put, recover, remove, remove_leftovers_of, temporary_name

_CHUNK = 1 << 20


_UMASK = os.umask(0o022)  # it can only be read by setting it
os.umask(_UMASK)


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """A temporary path beside ``final`` that becomes ``final`` when the block ends well.

    The block may write a file or a folder there, by any library. On any error the temporary is removed and ``final``
    is left as it was; what an earlier, killed run left here is removed first. Raises :class:`OutputError` when the
    place is not writable or the disk is full, whatever the library that wrote makes of it.
    """
    final = Path(final)
    writable_folder(final.parent)
    recover(final)
    remove_leftovers_of(final)
    temporary = final.with_name(temporary_name(final))
    remove(temporary)
    try:
        yield temporary
        _sync(temporary)
        put(temporary, final)
        _sync_folder(final.parent)
    except Exception as error:
        explained = _explained(error, temporary, final)
        remove(temporary)
        if explained is None:
            raise
        raise explained from error
    except BaseException:
        remove(temporary)
        raise


# How libraries that are not Python say that a write failed: safetensors, HDF5, torch.save.
_FAILED = {
    errno.ENOSPC: re.compile(r"No space left on device|os error 28|errno = 28"),
    errno.EDQUOT: re.compile(r"quota exceeded|os error 122|errno = 122", re.IGNORECASE),
    errno.EFBIG: re.compile(r"File too large|os error 27|errno = 27"),
}
_WRITE_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_PROBE = 1 << 20


def _explained(error: Exception, temporary: Path, final: Path) -> OutputError | None:
    """The sentence for a failed write; ``None`` for an error that is about something else."""
    if isinstance(error, MorphogenError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        ours = error.filename is None or str(error.filename).startswith((str(temporary), str(final)))
        return output_error(error, final) if ours or error.errno in _WRITE_CODES else None
    for code, words in _FAILED.items():
        if words.search(str(error)):
            return output_error(OSError(code, os.strerror(code)), final)
    # NumPy and torch.save lose the reason on the way, so the disk itself is asked.
    full = _full(final.parent, temporary)
    if full is not None:
        return output_error(full, final)
    return output_error(error, final) if isinstance(error, OSError) else None


def _probe(kind: str) -> str:
    """Name of a file that one thread makes and removes: several may write into one folder."""
    return f".{kind}-test.{os.getpid()}-{threading.get_native_id()}"


def _anew(probe: Path) -> int:
    """A handle of a new file at ``probe``; a link that was planted there is replaced, never followed."""
    probe.unlink(missing_ok=True)
    return os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)


def _full(folder: Path, temporary: Path) -> OSError | None:
    """Why no more can be written in ``folder``, or ``None`` when a MiB can."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    with suppress(OSError):
        if limit != resource.RLIM_INFINITY and temporary.is_file() and temporary.stat().st_size >= limit:
            return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    probe = folder / _probe("space")
    try:
        with open(_anew(probe), "wb", buffering=0) as file:
            file.write(bytes(min(_PROBE, limit) if limit != resource.RLIM_INFINITY else _PROBE))
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in _WRITE_CODES else None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


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


def output_error(error: OSError, where: Path | str) -> OutputError:
    """The :class:`OutputError` for an operating-system error while writing ``where``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            "the disk is full; nothing was left half-written", where=where, fix="Free space and run it again"
        )
    if error.errno == errno.EFBIG:
        return OutputError(
            "the file would be larger than is allowed here; nothing was left half-written",
            where=where,
            fix="Raise the limit (ulimit -f) and run it again",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError("no permission to write here", where=where, fix="Choose another folder")
    return OutputError(f"cannot be written ({error.strerror or error})", where=where)


def system_error(error: OSError) -> MorphogenError:
    """What to say of an error of the operating system that nobody explained: reading and writing are told apart."""
    if error.errno in _WRITE_CODES:
        return output_error(error, error.filename or "output")
    said = {
        errno.ENOENT: "there is no such file or folder",
        errno.EACCES: "no permission to use this",
        errno.EPERM: "no permission to use this",
        errno.EIO: "the disk or network failed while this was in use",
        errno.EMFILE: "too many files are open",
    }
    what = said.get(error.errno or 0, f"cannot be used ({error.strerror or error})")
    return InputError(what, where=error.filename)


def writable_folder(path: Path | str) -> Path:
    """Create ``path`` if needed and make sure that files can be made in it; :class:`OutputError` if not."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / _probe("write")
        os.close(_anew(probe))
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
    # Bytes of a file name that are not UTF-8 reach here as lone surrogates: \udcff is also what JSON calls them.
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: Any) -> Path:
    """Write JSON atomically; NumPy scalars and arrays, paths and sets are accepted, NaN and inf become null."""
    return write_text(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; :class:`InputError` when the file is missing or cut short."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except RecursionError:
        raise InputError("this is not a valid JSON file (it nests too deeply)", where=path) from None
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
        recover(Path(folder))
        path = Path(folder) / cls.NAME
        if not path.is_file():
            return None
        try:
            value = read_json(path)
        except InputError:
            return None
        return value if isinstance(value, dict) else None
