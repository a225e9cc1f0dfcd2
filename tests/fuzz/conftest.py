"""Well-formed inputs of every kind, made once for all tests that spoil them or meet a writer at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import harness, specimens


@pytest.fixture(scope="session")
def originals(tmp_path_factory) -> Path:
    harness.preload()
    root = tmp_path_factory.mktemp("specimens")
    harness.apart(lambda: specimens.all_specimens(root))
    return root


@pytest.fixture(scope="session")
def written(originals) -> Path:
    """The same with what other verbs start from: stores, predictions, models of all rooms."""
    harness.apart(lambda: specimens.results(originals))
    return originals
