"""Tables as spreadsheets, R and pandas write them: read with the right values, or refused with the row's number."""

from __future__ import annotations

import gzip
import logging
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphogen.core.errors import InputError
from morphogen.core.printing import TerminalLog, printable
from morphogen.core.reading.cells import parse_micrometres, parse_number, path_in, without_suffix
from morphogen.core.reading.frames import read_frame, read_matrix
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.reading.tables import read_table
from morphogen.core.reading.text import clean, is_missing, read_lines, read_text

TABLE = "path,mpp\na.png,0.5\nb.png,0.25\n"
WANTED = [("a.png", 0.5), ("b.png", 0.25)]

SAME = {
    "plain": TABLE.encode(),
    "byte order mark": b"\xef\xbb\xbf" + TABLE.encode(),
    "windows": TABLE.replace("\n", "\r\n").encode(),
    "old mac": TABLE.replace("\n", "\r").encode(),
    "semicolons": TABLE.replace(",", ";").encode(),
    "tabs": TABLE.replace(",", "\t").encode(),
    "excel's line": b"sep=;\n" + TABLE.replace(",", ";").encode(),
    "utf-16": TABLE.encode("utf-16"),
    "utf-16 without mark": TABLE.encode("utf-16-le"),
    "gzip": gzip.compress(TABLE.encode()),
    "header": TABLE.replace("path,mpp", " Path , MPP ").encode(),
    "index column": b",path,mpp\n0,a.png,0.5\n1,b.png,0.25\n",
    "trailing columns": b"path,mpp,,\na.png,0.5,,\nb.png,0.25,,\n",
    "trailing cells": b"path,mpp\na.png,0.5,,\nb.png,0.25\n",
    "empty rows": b"path,mpp\n\na.png,0.5\n,\n  \nb.png,0.25\n\n",
    "spaces": b"path, mpp\na.png, 0.5 \n b.png, 0.25\n",
    "quotes": b'"path","mpp"\n"a.png","0.5"\n"b.png","0.25"\n',
    "units": b"path,mpp\na.png,0.5 um\nb.png,250 nm\n",
    "micro signs": "path,mpp\na.png,0.5 µm/px\nb.png,0.25μm\n".encode(),
    "end of file": TABLE.encode() + b"\x1a",
}


@pytest.mark.parametrize("kind", SAME)
def test_one_table_however_it_was_saved(kind, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(SAME[kind])
    assert [(row.text("path"), row.micrometres("mpp")) for row in read_table(path)] == WANTED


REFUSED = {
    "decimal comma": (
        'path,mpp\na,1\nb,"0,5"\n',
        "line 3, column 'mpp': '0,5' has a decimal comma. Write 0.5",
    ),
    "semicolons and decimal comma": ("path;mpp\na;0,5\n", "line 2, column 'mpp': '0,5' has a decimal comma"),
    "magnification": ("path,mpp\na,40x\n", "'40x' is a magnification"),
    "foreign unit": ("path,mpp\na,0.5 furlong\n", "has the unit 'furlong'"),
    "not a number": ("path,mpp\na,half\n", "line 2, column 'mpp': 'half' is not a number"),
    "infinite": ("path,mpp\na,inf\n", "'inf' is not a number"),
    "zero": ("path,mpp\na,0\n", "'0' is not a size in µm"),
    "negative": ("path,mpp\na,-0.5\n", "'-0.5' is not a size in µm"),
    "short row": (
        "id,path,mpp\n1,a,0.5\n2\n",
        "line 3: the row has 1 cells where the header names 3 columns",
    ),
    "comma too many": (
        "path,mpp\nx,y.png,0.5\n",
        "line 2: the row has 3 cells where the header names 2 columns",
    ),
    "column twice": ("path,mpp,MPP\na,1,2\n", "the column 'mpp' comes more than once"),
    "empty": ("", "the table is empty"),
    "empty cell": ("path,mpp\n,0.5\n", "line 2: the column 'path' is empty"),
    "other columns": ("file_name,mpp\na,1\n", "no column is called path (columns: file_name, mpp)"),
    "no text": ("path,mpp\n\x00\x01\n", "this is not a text file (it holds the byte 0x00)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_need_a_guess_is_refused_with_its_row(kind, tmp_path):
    text, sentence = REFUSED[kind]
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        for row in read_table(path, ("path",)):
            row.need("path"), row.micrometres("mpp")
    assert sentence in str(caught.value)
    assert len(str(caught.value).replace(str(path), "t.csv")) <= 300


def test_latin_letters_are_read_and_the_guess_is_said(tmp_path, caplog):
    path = tmp_path / "t.csv"
    path.write_bytes("path,mpp\nPräparat 1.png,0.5\n".encode("latin-1"))
    assert read_table(path).rows[0].text("path") == "Präparat 1.png"
    assert "read as Latin-1" in caplog.text


def test_missing_words_and_names_in_one_form(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        'name,patient\na," P1 "\nb,P1\nc,NA\nd,nan\ne,None\nf,#N/A\ng,Mu\u0308ller\nh,M\u00fcller\n'
    )
    table = read_table(path)
    found = table.by_name("name", "patient")
    assert found["a"] == found["b"] == "P1"
    assert [found[name] for name in "cdef"] == [""] * 4
    assert found["g"] == found["h"] == "Müller"
    assert is_missing(float("nan")) and is_missing(None) and not is_missing(0)
    assert clean("\u200bP  1\ufeff") == "P 1"


def test_names_keep_their_dots_and_lose_only_a_files_suffix(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("name,patient\nTCGA-1.4E5F.png,A\nTCGA-1.9B2C,B\n")
    assert read_table(path).by_name("name", "patient", (".png",)) == {"TCGA-1.4E5F": "A", "TCGA-1.9B2C": "B"}
    assert without_suffix("s1.OME.tif", (".tif", ".ome.tif")) == "s1"
    path.write_text("name,patient\na,P1\nb,P2\na.png,P3\n")
    with pytest.raises(InputError, match="'a' has two values of patient: 'P1' in line 2 and 'P3' in line 4"):
        read_table(path).by_name("name", "patient", (".png",))


def test_paths_of_a_table(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.png", "two  spaces.png", "Mu\u0308ller.png"):
        (tmp_path / name).touch()
    table = tmp_path / "t.csv"
    assert path_in(table, "sub\\a.png") == tmp_path / "sub/a.png"
    assert path_in(table, f"file://{tmp_path}/sub/a.png") == tmp_path / "sub/a.png"
    assert path_in(table, "M\u00fcller.png").is_file()
    table.write_text("path\ntwo  spaces.png\n")
    assert read_table(table).rows[0].file("path").is_file()


def test_whole_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n2.0,NaN\n2.5,1\n")
    first, second = read_table(path)
    assert (first.integer("x"), first.integer("y"), first.integer("z")) == (2, None, None)
    with pytest.raises(InputError, match=r"line 3, column 'x': 2\.5 is not a whole number"):
        second.integer("x")
    assert parse_number("1e-3", "here") == 1e-3
    assert parse_micrometres("5e-4 mm", "here") == 0.5
    with pytest.raises(InputError):
        parse_number("1_000", "here")


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_text(tmp_path / "nosuch.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="this is not a file"):
        read_text(tmp_path / "pipe.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:-6])
    with pytest.raises(InputError, match="the compressed file is damaged"):
        read_text(tmp_path / "cut.csv.gz")


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("morphogen.core.reading.text.read_bytes.__defaults__", (1 << 20,))
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(b"0" * (4 << 20)))
    with pytest.raises(InputError, match="holds more than 1 MiB of text"):
        read_text(path)


def test_lines_of_a_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeff# mine\r\na.png\r\n\r\n b.png \r\n", encoding="utf-16")
    assert read_lines(path) == ["a.png", "b.png"]


# --- large tables ---------------------------------------------------------------------------------------------

COLUMNS = ("barcode", "in_tissue", "x")
ROWS = {"barcode": ["AA-1", "NN-1"], "in_tissue": [1, 0], "x": [3.5, -2.0]}
FRAMES = {
    "header": "barcode,in_tissue,x\nAA-1,1,3.5\nNN-1,0,-2\n",
    "no header": "AA-1,1,3.5\nNN-1,0,-2\n",
    "another order": "x;Barcode;in tissue\n3.5;AA-1;1\n-2;NN-1;0\n",
    "index and others": ",barcode,note,in_tissue,x\n0,AA-1,7,1,3.5\n1,NN-1,8,0,-2\n",
    "logical": "barcode,in_tissue,x\nAA-1,True,3.5\nNN-1,FALSE,-2\n",
    "trailing commas": "barcode,in_tissue,x,,\nAA-1,1,3.5,,\nNN-1,0,-2,,\n",
    "quotes": '"barcode","in_tissue","x"\n"AA-1","1","3.5"\n"NN-1","0","-2"\n',
}


@pytest.mark.parametrize("kind", FRAMES)
def test_columns_by_name(kind, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(FRAMES[kind])
    frame = read_frame(path, COLUMNS, text=("barcode",))
    assert {name: frame[name].tolist() for name in COLUMNS} == ROWS


def test_parquet_by_name(tmp_path):
    pd.DataFrame(ROWS)[["x", "barcode", "in_tissue"]].to_parquet(tmp_path / "a.parquet")
    pd.DataFrame(ROWS).set_index("barcode").to_parquet(tmp_path / "b.parquet")
    for name in ("a", "b"):
        frame = read_frame(tmp_path / f"{name}.parquet", COLUMNS, text=("barcode",))
        assert {name: frame[name].tolist() for name in COLUMNS} == ROWS
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_frame(tmp_path / "c.parquet", COLUMNS)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("barcode,in_tissue,x\nA,1,3\nB,1\n", "line 3: the row has 2 cells where there are 3 columns"),
        ("barcode,in_tissue,x\nA,1,3,4\n", "line 2: the row has 4 cells where there are 3 columns"),
        ('barcode,in_tissue,x\n"A,1",3\n', "line 2: the row has 2 cells where there are 3 columns"),
        ("barcode;in_tissue;x\nA;1;3,5\n", "line 2, column 'x': '3,5' has a decimal comma"),
        ("barcode,in_tissue,x\nA,1,3\n\nB,1,far\n", "line 4, column 'x': 'far' is not a number"),
        ("barcode,in_tissue\nA,1\n", "the column 'x' is missing"),
        ("barcode,x,in_tissue,x\nA,1,3,4\n", "the column 'x' comes more than once"),
        ("A,1\n", "the row has 2 cells where there are 3 columns"),
        ("", "the table is empty"),
    ],
)
def test_bad_rows_of_large_tables(text, sentence, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_frame(path, COLUMNS, text=("barcode",))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "text", ["\tG\tG\tH\n1x1\t1\t2\t3\n1x2\t4\t\t6\n", "G\tG\tH\n1x1\t1\t2\t3\n1x2\t4\tNA\t6\n"]
)
def test_a_matrix_keeps_names_that_come_twice(text, tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text(text)
    frame = read_matrix(path)
    assert frame.index.tolist() == ["1x1", "1x2"] and frame.columns.tolist() == ["G", "G", "H"]
    assert np.array_equal(frame.to_numpy(), [[1, 2, 3], [4, np.nan, 6]], equal_nan=True)
    path.write_text("\tG\n1x1\tmany\n")
    with pytest.raises(InputError, match="line 2, column 'G': 'many' is not a number"):
        read_matrix(path)


READERS = re.compile(
    r"\b(read_csv|read_table_csv|genfromtxt|loadtxt|read_parquet|csv\.(Dict)?[rR]eader|read_h5ad)\("
)
ALLOWED = {
    "core/reading/tables.py",
    "core/reading/frames.py",
    "core/writing/h5ad.py",
    "demo/chapters/genes.py",  # reads what the demonstration itself wrote
}


def test_tables_are_read_in_one_place():
    import morphogen

    root = Path(morphogen.__file__).parent
    found = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if READERS.search(path.read_text("utf-8"))
    }
    assert found <= ALLOWED


# --- folders and names to show ---------------------------------------------------------------------------------


def test_a_folder_is_listed_without_what_is_not_the_users(tmp_path):
    for name in (
        "b.h5ad",
        "A.H5AD",
        ".b.123.tmp.h5ad",
        "._b.h5ad",
        "~$b.h5ad",
        "Thumbs.db",
        "c.ome.tif",
        "c.txt",
    ):
        (tmp_path / name).touch()
    for name in ("run", ".hidden", "__MACOSX", "d.h5ad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "e.h5ad").touch()
    os.mkfifo(tmp_path / "pipe.h5ad")
    assert [p.name for p in list_files(tmp_path, "*.h5ad")] == ["A.H5AD", "b.h5ad"]
    assert [p.name for p in list_files(tmp_path, suffixes=(".tif",))] == ["c.ome.tif"]
    assert [p.name for p in list_folders(tmp_path)] == ["d.h5ad", "run"]
    inside = list_files(tmp_path, "*.h5ad", recursive=True)
    assert [str(p.relative_to(tmp_path)) for p in inside] == [
        "A.H5AD",
        "b.h5ad",
        "d.h5ad/e.h5ad",
        "run/e.h5ad",
    ]
    assert list_files(tmp_path / "nosuch") == []


def test_nothing_of_a_name_reaches_a_terminal_raw():
    assert printable("S1\x1b[2J\n\r\x07\u202e") == r"S1\x1b[2J\n\r\x07\u202e"
    assert printable(os.fsdecode(b"S\xff1")) == r"S\xff1"
    assert printable("Präparat 1 µm/px – CD3ε, 組織") == "Präparat 1 µm/px – CD3ε, 組織"
    assert printable("a\nb", keep="\n") == "a\nb"


def test_errors_and_the_log_are_one_printable_line(capsys):
    assert str(InputError("x\x1b[2J", where="a\nb")) == r"a\nb: x\x1b[2J."
    record = logging.LogRecord("morphogen", logging.WARNING, "", 0, "%s", ("S1\x1b[2J\nforged line",), None)
    TerminalLog().handle(record)
    assert capsys.readouterr().err == "note: S1\\x1b[2J\\nforged line\n"


def test_a_cell_longer_than_any_table_holds_is_named(tmp_path):
    path = tmp_path / "wide.csv"
    path.write_text("slide,mpp\n" + "9" * 200_000 + ",0.5\n")
    with pytest.raises(InputError, match="this is not a table"):
        read_table(path)
    path.write_text("9" * 200_000 + ",mpp\na,0.5\n")
    with pytest.raises(InputError, match="this is not a table"):
        read_table(path)
