"""YAML and JSON from strangers: bounded before they are believed.

A few lines of YAML can stand for gigabytes (anchors that repeat anchors), and brackets nested deeply enough overflow a
parser. Both are refused here, in one short sentence, and what a file must hold is said by a pydantic model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from morphogen.core.errors import InputError, MorphogenError

MAX_BYTES = 64 << 20
MAX_SETTINGS = 4 << 20  # bytes of a file of settings
MAX_VALUES = 100_000  # of a YAML file, with its anchors written out

T = TypeVar("T")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises :class:`ValueError` with one line for what is no YAML, nests too deeply or
    expands to more than :data:`MAX_VALUES` values."""
    import yaml

    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error)[:400].split())[:160]) from None
    except (TypeError, AttributeError, OverflowError) as error:  # such as a key that is a list
        raise ValueError(" ".join(str(error)[:400].split())[:160]) from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; an empty file has none.

    Raises :class:`InputError` when it is missing, cannot be read, is too large, or is no YAML mapping.
    """
    if not path.is_file():
        raise InputError("there is no such configuration file", where=path)
    try:
        if path.stat().st_size > MAX_SETTINGS:
            raise ValueError("it is far too large for a file of settings")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None
    except ValueError as error:  # bytes that are not UTF-8, too
        raise InputError(f"this is not valid YAML ({str(error)[:160]})", where=path) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError("a configuration file must hold 'key: value' pairs", where=path)
    return values


def _expanded(node: Any, known: dict[int, int]) -> int:
    """Values under a node, each as often as it would be written without anchors."""
    size = known.get(id(node))
    if size is None:
        known[id(node)] = MAX_VALUES + 1  # an anchor inside itself has no end
        children = node.value if isinstance(node.value, list) else []
        flat = [each for child in children for each in (child if isinstance(child, tuple) else (child,))]
        size = known[id(node)] = 1 + sum(_expanded(each, known) for each in flat)
    if size > MAX_VALUES:
        raise ValueError(f"its anchors expand to more than {MAX_VALUES:,} values")
    return size


def read_document(
    path: Path | str,
    kind: Any,
    *,
    error: type[MorphogenError] = InputError,
    fix: str | None = "Copy it again",
) -> Any:
    """A JSON file as ``kind``: a pydantic model, or any type that pydantic knows, read strictly (no text or truth
    value for a number).

    Raises ``error`` with one short sentence for a file that is missing, too large, nested too deeply, no JSON or of
    another structure.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES or not path.is_file():
            raise error("this is no ordinary JSON file, or far too large", where=path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error("there is no such file", where=path) from None
    except OSError as problem:
        raise error(f"cannot be read ({problem.strerror})", where=path) from None
    except RecursionError:
        raise error("this is not a valid JSON file (it nests too deeply)", where=path, fix=fix) from None
    except ValueError as problem:
        line = " ".join(str(problem)[:400].split())[:120]
        raise error(f"this is not a valid JSON file ({line})", where=path, fix=fix) from None
    return checked(value, kind, where=path, error=error, fix=fix)


def checked(
    value: Any,
    kind: Any,
    *,
    where: object,
    error: type[MorphogenError] = InputError,
    fix: str | None = None,
) -> Any:
    """``value``, read from JSON, as ``kind``; ``error`` names the first place where it is something else."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except RecursionError:
        raise error("it nests too deeply", where=where, fix=fix) from None
    except ValidationError as problem:
        raise error(explain(problem), where=where, fix=fix) from None


def explain(problem: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one short line."""
    first = problem.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:80]
    message = first["msg"].removeprefix("Value error, ")[:160]
    message = message[:1].lower() + message[1:]
    if first["type"] == "missing":
        return f"'{place}' is missing"
    return f"'{place}' is {shown(first['input'])}, but {message}" if place else message


def shown(value: Any) -> str:
    """A value for a message: short whatever it is, cut in the middle."""
    import reprlib

    brief = reprlib.Repr()
    brief.maxlevel, brief.maxlist, brief.maxtuple, brief.maxdict, brief.maxset = 2, 4, 4, 3, 3
    brief.maxstring = brief.maxother = brief.maxlong = 60
    return brief.repr(value)
