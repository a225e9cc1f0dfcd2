"""Lists of genes are read in whatever form they are kept."""

from __future__ import annotations

import pytest

from morphogen.core.errors import InputError
from morphogen.core.reading.names import read_names

FORMS = {
    "lines": "A\nB-1\nC.2\n",
    "windows": "\ufeffA\r\nB-1\r\nC.2",
    "header": "Gene\nA\nB-1\nC.2\n",
    "quotes": '"A"\n"B-1"\n"C.2"\n',
    "commas": "A, B-1,C.2\n",
    "semicolons": "A;B-1;C.2;\n",
    "spaces": "A B-1  C.2\n",
    "json": '["A", "B-1",\n "C.2"]',
    "pandas with its index": ",gene\n0,A\n1,B-1\n2,C.2\n",
    "a table": "id\tsymbol\nE1\tA\nE2\tB-1\nE3\tC.2\n",
    "comments": "# mine\nA\n\nB-1\nC.2\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_names(tmp_path, form):
    path = tmp_path / "genes.txt"
    path.write_bytes(FORMS[form].encode())
    assert read_names(path) == ["A", "B-1", "C.2"]
    path.write_text(FORMS[form].replace("\r\n", "\n"), encoding="utf-16")
    assert read_names(path) == ["A", "B-1", "C.2"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the list is empty"),
        ("gene\n", "the list is empty"),
        ('["A", 1]', "not a JSON list of names"),
        ("[" * 100_000, "not a JSON list of names"),
        ("ENSG1,A\nENSG2,B\n", "no column is called gene or genes"),
        (",gene\n0,A\n1,\n", "line 3: the column 'gene' is empty"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, text, sentence):
    path = tmp_path / "genes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_names(path)
