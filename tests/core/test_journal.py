"""What a killed loop had done is found again, and nothing that is not whole or of other settings."""

import numpy as np
import pytest

from morphogen.core.errors import InputError, OutputError
from morphogen.core.running.spread import Spread
from morphogen.core.writing.journal import Journal, journalled


def test_a_killed_loop_finds_what_it_had_done(tmp_path):
    path = tmp_path / "out/.table.part"
    journal = Journal(path, "rigid", 32)
    assert journal.get("a") is None and not path.exists()  # nothing is written for nothing
    journal.put("a", (np.array([1.5, 2.0]), None, np.bool_(True)))
    journal.put("b", 0.1)
    again = Journal(path, "rigid", 32)
    assert again.get("a") == [[1.5, 2.0], None, True] and again.get("b") == 0.1 and len(again) == 2
    again.put("c", "ü")
    assert Journal(path, "rigid", 32).get("c") == "ü" and len(Journal(path, "rigid", 32)) == 3
    again.remove()
    assert not path.exists()


def test_a_line_cut_by_a_kill_is_done_again(tmp_path):
    path = tmp_path / "part"
    for key in "ab":
        journal = Journal(path)
        journal.put(key, 1)
    path.write_bytes(path.read_bytes()[:-4])
    journal = Journal(path)
    assert journal.get("a") == 1 and journal.get("b") is None
    journal.put("c", 2)
    assert [Journal(path).get(key) for key in "abc"] == [1, None, 2]


@pytest.mark.parametrize("text", ["", "\x00\x01", "[1, 2]\n3\n", 'mark of others\n["a", 1]\n'])
def test_journals_of_others_are_begun_anew(tmp_path, text):
    path = tmp_path / "part"
    path.write_text(text)
    journal = Journal(path, "settings")
    assert journal.get("a") is None and len(journal) == 0
    journal.put("b", 2)
    assert Journal(path, "settings").get("b") == 2 and len(Journal(path, "other settings")) == 0


def test_a_result_that_cannot_be_kept_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Journal(tmp_path / "file" / "part").put("a", 1)
    (tmp_path / "part").mkdir()
    with pytest.raises(OutputError):
        Journal(tmp_path / "part").put("a", 1)


def third(n: int) -> tuple[float, None]:
    return n / 3, None


def test_the_engine_of_many_items_fills_a_journal_too(tmp_path):
    journal = Journal(tmp_path / "part")
    journal.put("1", "kept")
    spread = Spread(workers=1, retries=0)
    found = list(journalled(third, range(4), str, journal, spread=spread))
    assert found == [[0.0, None], "kept", [2 / 3, None], [1.0, None]]
    assert [Journal(tmp_path / "part").get(key) for key in "0123"] == found
    with pytest.raises(InputError, match="unsupported operand"):
        list(journalled(third, [1, "a"], str, None, spread=spread))


def test_results_come_in_order_and_fresh_ones_look_like_kept_ones(tmp_path):
    done = []

    def work(n):
        done.append(n)
        return (np.float64(n) / 3, None)

    journal = Journal(tmp_path / "part")
    journal.put("2", "kept")
    found = list(journalled(work, range(5), str, journal, workers=3))
    assert found == [[0.0, None], [1 / 3, None], "kept", [1.0, None], [4 / 3, None]]
    assert sorted(done) == [0, 1, 3, 4]
    assert list(journalled(work, range(5), str, Journal(tmp_path / "part"))) == found and len(done) == 4
    assert list(journalled(work, range(2), str, None, workers=1)) == found[:2]
