"""No array of a stranger's zarr store is unpickled, whatever the version and settings of the libraries."""

from __future__ import annotations

import json

import pytest

from morphogen.core.errors import InputError
from morphogen.core.reading.codecs import check_codecs

ARRAY = {
    "zarr_format": 2,
    "shape": [1],
    "chunks": [1],
    "dtype": "|O",
    "order": "C",
    "fill_value": 0,
    "compressor": None,
}


@pytest.mark.parametrize("place", [".zarray", ".zmetadata", "zarr.json"])
@pytest.mark.parametrize("written", ["pickle", "p\\u0069ckle"])
def test_a_pickled_array_is_refused(tmp_path, place, written):
    folder = tmp_path / "s.zarr" / "tables" / "x"
    folder.mkdir(parents=True)
    text = json.dumps(ARRAY | {"filters": [{"id": "NAME", "protocol": 4}]}).replace("NAME", written)
    (folder / place).write_text(text)
    with pytest.raises(InputError, match="is pickled, and reading one can run code"):
        check_codecs(tmp_path / "s.zarr")


def test_other_codecs_and_words_pass(tmp_path):
    (tmp_path / "zarr.json").write_text(
        json.dumps({"attributes": {"note": "pickle"}, "codecs": [{"name": "zstd"}]})
    )
    (tmp_path / ".zarray").write_text(json.dumps(ARRAY | {"filters": [{"id": "vlen-utf8"}]}))
    check_codecs(tmp_path)


def test_a_slide_with_such_a_store_is_refused(tmp_path):
    from types import SimpleNamespace

    from morphogen.slides.store import read_store

    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / ".zarray").write_text(json.dumps(ARRAY | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(InputError, match="is pickled"):
        read_store(SimpleNamespace(path=tmp_path / "s.tif", store=tmp_path / "s.zarr", width=1, height=1))
