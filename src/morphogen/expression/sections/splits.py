"""Splits of sections by patient; the rules are those of :mod:`morphogen.tasks.splits`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import anndata as ad

from morphogen.core.errors import InputError
from morphogen.expression.data import facts
from morphogen.tasks import splits
from morphogen.tasks.splits import Split

By = Literal["patient", "section"]

__all__ = ["By", "Split", "folds", "split_sections"]


def split_sections(
    sections: Sequence[ad.AnnData],
    test: Sequence[str],
    train: Sequence[str] | None = None,
    by: By = "patient",
) -> Split:
    """Split sections into training and test.

    by="patient" promises that no patient is on both sides, so every section needs a patient and none may be shared:
    :class:`InputError` otherwise. by="section" makes no such promise; siblings of test sections in training are
    found and named. train=None takes all that are not in the test.
    """
    patients = {facts(s).section: facts(s).patient for s in sections}
    if len(patients) < len(sections):
        raise InputError("two sections have one name")
    fix = "Give --data.patients FILE.csv (section,patient), or use --by section and say so"
    return splits.split_items(patients, test, train, by, what="section", fix=fix)


def folds(sections: Sequence[ad.AnnData], by: By = "patient") -> list[tuple[list[int], list[int]]]:
    """Inner folds over TRAINING sections, (rows of fit, rows of validation) each.

    by="patient" leaves one patient out at a time (sections without a patient count as their own); by="section" one
    section. With a single group there is nothing to leave out: an empty list, and the caller must fold within the
    section.
    """
    about = [facts(section) for section in sections]
    return splits.folds(
        [f.patient if by == "patient" and f.patient else f"section:{f.section}" for f in about]
    )
