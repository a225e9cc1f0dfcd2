"""What a folder holds, without what systems and killed runs leave in it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

_RUBBISH = {"thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "lost+found"}


def is_leftover(path: Path | str) -> bool:
    """Whether a name is not a user's: hidden (``.DS_Store``, ``._X.h5ad``, our ``.X.123.tmp.h5ad``), an office lock
    (``~$X.xlsx``) or a system's (``Thumbs.db``, ``__MACOSX``)."""
    name = Path(path).name
    return name.startswith((".", "~$")) or name.lower() in _RUBBISH


def list_files(
    folder: Path | str,
    pattern: str = "*",
    *,
    suffixes: Iterable[str] | None = None,
    recursive: bool = False,
) -> list[Path]:
    """Regular files of a folder by name, sorted; never leftovers (:func:`is_leftover`). Links to what is not there are
    named too: whoever opens one says so, where leaving it out would pass over a sample in silence.

    pattern: a glob on the file's name; as the suffixes, in any case. suffixes: endings with their dot, also double ones
    (``.ome.tif``). recursive: in all folders below, too. A folder that is not there has none.
    """
    endings = None if suffixes is None else tuple(suffix.lower() for suffix in suffixes)
    return [
        path
        for path in _walk(Path(folder), recursive)
        if fnmatchcase(path.name.lower(), pattern.lower())
        and (endings is None or path.name.lower().endswith(endings))
        and (path.is_file() or (path.is_symlink() and not path.exists()))
    ]


def list_folders(folder: Path | str, pattern: str = "*") -> list[Path]:
    """Folders in a folder by name, sorted; never leftovers."""
    return [
        path
        for path in _walk(Path(folder), False)
        if fnmatchcase(path.name.lower(), pattern.lower()) and path.is_dir()
    ]


def _walk(folder: Path, recursive: bool) -> list[Path]:
    if not folder.is_dir():
        return []
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if is_leftover(path):
            continue
        found.append(path)
        if recursive and path.is_dir() and not path.is_symlink():  # a link may lead back up
            found += _walk(path, True)
    return found
