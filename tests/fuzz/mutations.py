"""Ways to spoil a file, each a pure function of a seed."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/tmp/should-not-be) (w) file closefile\nshowpage\n"
)
FOREIGN = {
    "eps": EPS,
    "pdf": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "zip": b"PK\x05\x06" + bytes(18),
    "gzip": gzip.compress(bytes(1 << 22)),
    "pickle": b"cposix\nsystem\n(S'touch code-was-run'\ntR.",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
    "text": "Größe;Einheit\n1,5;µm\n".encode("latin-1"),
    "nul": bytes(512),
}


def spoil_bytes(path: Path, rng: random.Random) -> str:
    """Spoil a file as a disk, a network or a stranger would."""
    data = path.read_bytes()
    kind = rng.choice(
        ["cut", "cut", "flip", "flip", "hole", "foreign", "foreign", "empty", "noise", "place", "tail"]
    )
    if kind == "cut":
        path.write_bytes(data[: int(len(data) * rng.choice([0.01, 0.1, 0.5, 0.75, 0.95, 0.999]))])
    elif kind == "flip":
        spoiled = bytearray(data)
        reach = len(data) if rng.random() < 0.5 else min(len(data), 400)
        for _ in range(rng.choice([1, 4, 32])):
            spoiled[rng.randrange(reach)] = rng.randrange(256)
        path.write_bytes(bytes(spoiled))
    elif kind == "hole":
        at = rng.randrange(len(data))
        path.write_bytes(
            data[:at] + bytes(min(len(data) - at, rng.choice([16, 512, 4096]))) + data[at + 4096 :]
        )
    elif kind == "foreign":
        kind = rng.choice(sorted(FOREIGN))
        path.write_bytes(FOREIGN[kind])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(rng.randbytes(len(data) // 2 + 1))
    elif kind == "tail":
        path.write_bytes(data + data[: len(data) // 2])
    else:
        kind = rng.choice(["fifo", "folder", "loop", "dangling", "socket name"])
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path.name)
        else:
            path.symlink_to("is-not-there")
    return kind


VALUES: list[Any] = [
    None, True, -1, 0, 10**9, 1e308, "", "x", "../../escaped", "/escaped", "a\x00b", "\x1b[31mred", "\udcff", "n\nn",
    "$\\frac{1}{2$", "NaN", [], [[]], {}, ["../../x"], {"a": 1}, "é" * 400,
]  # fmt: skip


def spoil_json(path: Path, rng: random.Random) -> str:
    """Replace, add or remove one value of a JSON file, or spoil its text."""
    kind = rng.choice(["value", "value", "value", "value", "remove", "list", "deep", "twice", "long"])
    value = json.loads(path.read_text())
    if kind == "deep":
        path.write_text("[" * 100_000 + "]" * 100_000)
        return kind
    if kind == "long":
        path.write_text('{"x": "' + "y" * (1 << 22) + '"}')
        return kind
    if kind == "list":
        path.write_text(json.dumps([value]))
        return kind
    places = list(_places(value))
    if not places:
        path.write_text("[]")
        return "no object"
    holder, key = rng.choice(places)
    if kind == "remove":
        del holder[key]
    elif kind == "twice":
        holder[key] = [holder[key], holder[key]]
    else:
        holder[key] = rng.choice(VALUES)
    path.write_text(json.dumps(value), encoding="utf-8", errors="surrogatepass")
    return f"{kind} of {key}"


def _places(value: Any) -> Any:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield value, key
            yield from _places(inner)
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            yield value, key
            yield from _places(inner)


def spoil_table(path: Path, rng: random.Random) -> str:
    """Spoil a table of text as spreadsheets and hands do."""
    text = path.read_text()
    rows = text.splitlines()
    mark = "\t" if "\t" in text else ","
    row = rng.randrange(len(rows))
    cells = rows[row].split(mark)
    cell = rng.randrange(len(cells))
    kind = rng.choice(
        [
            "cell",
            "cell",
            "cell",
            "short",
            "surplus",
            "header",
            "utf16",
            "latin",
            "nul",
            "quote",
            "no rows",
            "column",
            "wide",
            "same",
        ]
    )
    if kind == "cell":
        cells[cell] = rng.choice(
            ["", "NA", "nan", "inf", "-5", "1e400", "0,5", "text", "../../x", "\x1b[2J", "$\\frac", "0.5um"]
        )
        rows[row] = mark.join(cells)
    elif kind == "short":
        rows[row] = mark.join(cells[:-1])
    elif kind == "surplus":
        rows[row] += mark * 3 + "x"
    elif kind == "header":
        rows[0] = mark.join(rng.sample(rows[0].split(mark), len(rows[0].split(mark))))
    elif kind == "nul":
        rows[row] = rows[row][:1] + "\x00" + rows[row][1:]
    elif kind == "quote":
        rows[row] = '"' + rows[row]
    elif kind == "no rows":
        rows = rows[:1]
    elif kind == "column":
        rows = [mark.join(r.split(mark)[1:]) for r in rows]
    elif kind == "wide":
        rows[row] = mark.join(["9" * 200_000])
    elif kind == "same":
        rows += rows[1:]
    text = "\n".join(rows) + "\n"
    encoding = {"utf16": "utf-16", "latin": "latin-1"}.get(kind, "utf-8")
    path.write_bytes((text + ("µé" if kind == "latin" else "")).encode(encoding, "replace"))
    return kind


def spoil_h5(path: Path, rng: random.Random) -> str:
    """Spoil one dataset or attribute of an HDF5 file."""
    import h5py
    import numpy as np

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(sorted(names))
        kind = rng.choice(["remove", "nan", "cut", "text", "far", "far", "two", "scalar", "attribute"])
        old = file[name]
        if kind == "attribute" and old.attrs:
            key = rng.choice(sorted(old.attrs))
            old.attrs[key] = rng.choice(["nonsense", "csr_matrix", -1, 10**9])
            return f"{kind} {key} of {name}"
        if kind == "remove" or not isinstance(old, h5py.Dataset):
            del file[name]
            return f"remove {name}"
        value, attributes = old[()], dict(old.attrs)
        del file[name]
        array = np.asarray(value)
        number = array.dtype.kind in "iuf"
        if kind == "nan":
            array = np.full(array.shape, np.nan, np.float32)
        elif kind == "cut":
            array = array[: max(0, len(array) // 2)] if array.ndim else array
        elif kind == "far" and number and array.size:
            array = array.copy()
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice(
                [-7, 10**9 if array.dtype.itemsize > 2 else 99]
            )
        elif kind == "two":
            array = np.stack([array, array])
        elif kind == "scalar":
            array = np.float32(3)
        else:
            array = np.asarray(["text\n\x1b[31m"] * max(1, array.size), dtype=h5py.string_dtype())
        made = file.create_dataset(name, data=array)
        for key, attribute in attributes.items():
            made.attrs[key] = attribute
        return f"{kind} of {name}"


def spoil_yaml(path: Path, rng: random.Random) -> str:
    """Write a configuration that no one should obey."""
    texts = {
        "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
        ),
        "deep": "x: " + "[" * 5000 + "]" * 5000,
        "object": "!!python/object/apply:os.system ['touch code-was-run']",
        "list": "- a\n- b\n",
        "unknown": "no_such_setting: 1\n",
        "bool": "seed: true\n",
        "huge": "seed: " + "9" * 5000 + "\n",
        "type": "samples: [1, 2]\n",
        "bytes": "\x00\x01",
        "tabs": "a:\n\t- b\n",
        "ansi": 'stain: "\\e[31m"\n',
    }  # fmt: skip
    kind = rng.choice(sorted(texts))
    path.write_text(texts[kind])
    return kind


def spoil_name(path: Path, rng: random.Random) -> str:
    """Give a file a name that shells, terminals and file systems dislike."""
    names = [
        b"-rf",
        b"\xff\xfe",
        b"a\nb",
        b"\x1b[31m",
        b"$(x)",
        b".hidden",
        b" lead",
        b"x" * 240,
        b"%s%n",
        b"$\\frac",
        b"COM1",
    ]
    chosen = rng.choice(names)
    target = os.path.join(os.fsencode(path.parent), chosen + os.fsencode(path.suffix))
    shutil.move(os.fsencode(path), target)
    return repr(chosen)


Spoiler = Callable[[Path, random.Random], str]
