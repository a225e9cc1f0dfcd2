"""Splits by patient that fail closed: no claim of a held-out patient without patients to show for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import anndata as ad

from morphogen.core.errors import InputError, nearest
from morphogen.expression.data import facts

By = Literal["patient", "section"]


@dataclass(frozen=True)
class Split:
    """Sections to train on and to test on, with what the split may be called."""

    by: By
    train: tuple[str, ...]
    test: tuple[str, ...]
    patients: dict[str, str]  # section → patient, "" = not known
    siblings: tuple[str, ...] = ()  # training sections whose patient is also in the test

    @property
    def label(self) -> str:
        """How the split must be named wherever its figures are shown."""
        if self.by == "patient":
            return "held-out patient"
        if self.siblings:
            return f"held-out section, SIBLING sections in training ({', '.join(self.siblings)})"
        if all(self.patients.values()):
            return "held-out section"
        return "held-out section, patients not known"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "label": self.label}


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
    for name in [*test, *(train or ())]:
        if name not in patients:
            raise InputError(f"there is no section '{name}'.{nearest(name, patients)}", where="split")
    chosen = tuple(train) if train is not None else tuple(name for name in patients if name not in set(test))
    both = sorted(set(chosen) & set(test))
    if both:
        raise InputError(f"section {both[0]} is in the training and in the test", where="split")
    if not chosen or not test:
        raise InputError(
            f"{len(chosen)} training and {len(test)} test sections: both need one", where="split"
        )
    tested = {patients[name] for name in test}
    shared = tuple(name for name in chosen if patients[name] and patients[name] in tested)
    if by == "patient":
        unknown = [name for name in (*chosen, *test) if not patients[name]]
        if unknown:
            raise InputError(
                f"the patient of section {unknown[0]} is not known, so this cannot be called a split by patient",
                where="split",
                fix="Give --data.patients FILE.csv (section,patient), or use --by section and say so",
            )
        if shared:
            raise InputError(
                f"patient {patients[shared[0]]} is on both sides: section {shared[0]} is in training and "
                f"{next(t for t in test if patients[t] == patients[shared[0]])} in the test",
                where="split",
                fix="Move the sections of one patient to one side, or use --by section and say so",
            )
    return Split(by, chosen, tuple(test), {n: patients[n] for n in (*chosen, *test)}, shared)


def folds(sections: Sequence[ad.AnnData], by: By = "patient") -> list[tuple[list[int], list[int]]]:
    """Inner folds over TRAINING sections, (rows of fit, rows of validation) each.

    by="patient" leaves one patient out at a time (sections without a patient count as their own); by="section" one
    section. With a single group there is nothing to leave out: an empty list, and the caller must fold within the
    section.
    """
    groups: dict[str, list[int]] = {}
    for i, section in enumerate(sections):
        f = facts(section)
        groups.setdefault(f.patient if by == "patient" and f.patient else f"section:{f.section}", []).append(
            i
        )
    if len(groups) < 2:
        return []
    return [([i for i in range(len(sections)) if i not in held], held) for held in groups.values()]
