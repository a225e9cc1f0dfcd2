"""Bounds on a pickle before anything reads it.

A pickle of a few kilobytes can name containers that take hours to hash, a stack that overflows, or a memo of
gigabytes. Its instructions are followed here without making any object: for every tuple and frozen set, the only
containers that are hashed, how deep it nests and how many items it would have written out in full.
"""

from __future__ import annotations

import pickle
import pickletools
from typing import IO

MAX_BYTES = 256 << 20  # of instructions; tensor data lies elsewhere
MAX_STEPS = 5_000_000
MAX_DEPTH = 100
MAX_ITEMS = 1_000_000

_MARK = (-1, -1)
_NESTING = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_CALLING = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}  # their result may be the tuple they are given
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}

Extent = tuple[int, int]  # depth, items


def check_pickle(file: IO[bytes]) -> None:
    """Follow one pickle up to its end; :class:`pickle.UnpicklingError` where it goes beyond the bounds or is none.

    The file is left just behind the pickle.
    """
    stack: list[Extent] = []
    memo: dict[int, Extent] = {}
    try:
        for step, (code, argument, _) in enumerate(pickletools.genops(file)):
            name = code.name
            if step > MAX_STEPS:
                raise pickle.UnpicklingError(f"its pickle has more than {MAX_STEPS:,} steps")
            if name in _PUT or name == "MEMOIZE":
                place = len(memo) if name == "MEMOIZE" else int(argument or 0)
                if place > 2 * step + 1000:  # the memo is an array of this length
                    raise pickle.UnpicklingError(
                        "its pickle reserves memory for objects that it does not have"
                    )
                memo[place] = stack[-1]
            elif name in _GET:
                stack.append(memo[int(argument or 0)])
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                _apply(code, stack)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise pickle.UnpicklingError(f"its pickle is damaged ({str(error)[:100]})") from None


def _apply(code: pickletools.OpcodeInfo, stack: list[Extent]) -> None:
    before, after = code.stack_before, code.stack_after
    taken: list[Extent] = []
    count = len(before)
    if pickletools.markobject in before:
        while stack[-1] is not _MARK:
            taken.append(stack.pop())
        stack.pop()
        count = before.index(pickletools.markobject)
    for _ in range(count):
        taken.append(stack.pop())
    if not after:
        return
    if after[0] is pickletools.markobject:
        stack.append(_MARK)
        return
    made: Extent = (0, 1)
    if code.name in _NESTING or code.name in _CALLING:
        made = (1 + max((d for d, _ in taken), default=0), 1 + sum(n for _, n in taken))
        if made[0] > MAX_DEPTH or made[1] > MAX_ITEMS:
            raise pickle.UnpicklingError(
                f"its pickle nests containers more than {MAX_DEPTH} deep or {MAX_ITEMS:,} wide"
            )
    stack.extend([made] * len(after))
