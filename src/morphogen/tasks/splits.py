"""Splits by patient that fail closed: no claim of a held-out patient without patients to show for it.

A room hands in the patient of every item (``""`` = not known) and gets a :class:`Split`, which says what it may be
called, or inner folds over its training items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from morphogen.core.errors import InputError, nearest
from morphogen.core.seeds import numpy_generator

PATIENT = "patient"


@dataclass(frozen=True)
class Split:
    """Items to train on and to test on, with what the split may be called."""

    by: str  # "patient", or what an item is ("section", "slide", "image")
    train: tuple[str, ...]
    test: tuple[str, ...]
    patients: dict[str, str]  # item → patient, "" = not known
    siblings: tuple[str, ...] = ()  # training items whose patient is also in the test
    what: str = "section"

    @property
    def label(self) -> str:
        """How the split must be named wherever its figures are shown."""
        if self.by == PATIENT:
            return "held-out patient"
        if self.siblings:
            return f"held-out {self.what}, SIBLING {self.what}s in training ({', '.join(self.siblings)})"
        if all(self.patients.values()):
            return f"held-out {self.what}"
        return f"held-out {self.what}, patients not known"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the label among them."""
        return {
            "by": self.by,
            "train": self.train,
            "test": self.test,
            "patients": self.patients,
            "siblings": self.siblings,
            "label": self.label,
        }


def split_items(
    patients: Mapping[str, str],
    test: Sequence[str],
    train: Sequence[str] | None = None,
    by: str = PATIENT,
    *,
    what: str = "section",
    fix: str | None = None,
) -> Split:
    """Split items (``name → patient``) into training and test.

    by="patient" promises that no patient is on both sides, so every item needs a patient and none may be shared:
    :class:`InputError` otherwise. Any other ``by`` makes no such promise; siblings of test items in training are found
    and named. train=None takes all that are not in the test. ``what`` an item is and ``fix``, how patients are given,
    are words for the messages.

    >>> split_items({"C5": "C", "C6": "C", "D1": "D"}, ["D1"]).train
    ('C5', 'C6')
    """
    for name in [*test, *(train or ())]:
        if name not in patients:
            raise InputError(f"there is no {what} '{name}'.{nearest(name, patients)}", where="split")
    chosen = tuple(train) if train is not None else tuple(name for name in patients if name not in set(test))
    both = sorted(set(chosen) & set(test))
    if both:
        raise InputError(f"{what} {both[0]} is in the training and in the test", where="split")
    if not chosen or not test:
        raise InputError(f"{len(chosen)} training and {len(test)} test {what}s: both need one", where="split")
    tested = {patients[name] for name in test}
    shared = tuple(name for name in chosen if patients[name] and patients[name] in tested)
    if by == PATIENT:
        unknown = [name for name in (*chosen, *test) if not patients[name]]
        if unknown:
            raise InputError(
                f"the patient of {what} {unknown[0]} is not known, so this cannot be called a split by patient",
                where="split",
                fix=fix or f"Say which patient every {what} is of, or split by {what} and say so",
            )
        if shared:
            raise InputError(
                f"patient {patients[shared[0]]} is on both sides: {what} {shared[0]} is in training and "
                f"{next(t for t in test if patients[t] == patients[shared[0]])} in the test",
                where="split",
                fix=f"Move the {what}s of one patient to one side, or use --by {what} and say so",
            )
    return Split(by, chosen, tuple(test), {n: patients[n] for n in (*chosen, *test)}, shared, what)


def held_together(*labels: Sequence[str]) -> list[int]:
    """Numbers of the units of items that are held out together: items that share any label, directly or over others.
    ``labels``: of each kind (array, patient), one per item, ``""`` = not known; an item without any is alone.

    >>> held_together(["array 1", "array 1", "array 2", "", ""], ["A", "B", "C", "C", ""])
    [0, 0, 1, 1, 2]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(labels[0])
    # Items are the first nodes, so that their units are numbered as they come; a label is a node of its own.
    nodes = {
        key: count + number
        for number, key in enumerate({(k, x) for k, kind in enumerate(labels) for x in kind})
    }
    edges = [(item, nodes[k, x]) for k, kind in enumerate(labels) for item, x in enumerate(kind) if x]
    size = count + len(nodes)
    ends = tuple(zip(*edges)) or ((), ())
    graph = coo_array(([1] * len(edges), ends), shape=(size, size))
    return connected_components(graph, directed=False)[1][:count].tolist()  # type: ignore[no-any-return]


def folds(units: Sequence[str]) -> list[tuple[list[int], list[int]]]:
    """Inner folds over TRAINING items, (positions of fit, positions of validation) each.

    ``units[i]`` names what item i belongs to (its patient, or itself); one unit is left out at a time. With a single
    unit there is nothing to leave out: an empty list, and the caller must fold within the item.

    >>> folds(["A", "B", "A"])
    [([1], [0, 2]), ([0, 2], [1])]
    """
    groups: dict[str, list[int]] = {}
    for position, unit in enumerate(units):
        groups.setdefault(unit, []).append(position)
    if len(groups) < 2:
        return []
    return [([i for i in range(len(units)) if i not in held], held) for held in groups.values()]


def hold_out(units: Sequence[str], share: float, *, seed: int = 0) -> tuple[list[int], list[int]]:
    """Positions to train on and to hold out: whole units (patients) in an order drawn from the seed, until ``share``
    of the items is held out; at least one unit on each side. :class:`InputError` for a single unit."""
    names = sorted(set(units))
    if len(names) < 2:
        raise InputError(
            f"all {len(units)} items are of one patient or slide, so none can be held out",
            where="split",
            fix="Add data of another one, or name what to hold out",
        )
    order = numpy_generator(seed, "hold out").permutation(len(names))
    held: set[str] = set()
    for k in order[:-1]:
        if held and sum(unit in held for unit in units) >= share * len(units):
            break
        held.add(names[k])
    train = [i for i, unit in enumerate(units) if unit not in held]
    return train, [i for i, unit in enumerate(units) if unit in held]
