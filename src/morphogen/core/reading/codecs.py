"""Zarr stores from strangers: none whose arrays are pickles.

Format 2 of Zarr lets an array name the codec ``pickle``, and reading it would run what it holds. Recent versions of
numcodecs refuse it unless an environment variable allows it; here it is refused whatever the version and the variable.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from morphogen.core.errors import InputError

_METADATA = (".zarray", ".zmetadata", "zarr.json")
_PICKLE = re.compile(rb'"(id|name)"\s*:\s*"(numcodecs\.)?pickle"', re.IGNORECASE)


def check_codecs(store: Path | str) -> None:
    """:class:`InputError` for a store on disk in which any array is pickled. Reads the metadata alone."""
    for folder, _, files in os.walk(store):
        for name in files:
            if name in _METADATA:
                # An escaped letter would hide the word from the pattern and not from a JSON parser.
                data = (Path(folder) / name).read_bytes()
                if _PICKLE.search(data) or rb"\u00" in data and _PICKLE.search(_unescaped(data)):
                    raise InputError(
                        "an array in it is pickled, and reading one can run code",
                        where=folder,
                        fix="Save it again without the codec pickle",
                    )


def _unescaped(data: bytes) -> bytes:
    return re.sub(rb"\\u00([0-9a-fA-F]{2})", lambda found: bytes([int(found[1], 16)]), data)
