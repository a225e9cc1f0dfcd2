"""What every verb shares: the option types, settings from YAML and ``--section.key``, printing of results."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from morphogen.core.presets import parse_settings
from morphogen.core.printing import printable

if TYPE_CHECKING:
    from rich.text import Text

    from morphogen.core.config import Config

C = TypeVar("C", bound="Config")

Settings = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="Any setting of the configuration, written `--section.key VALUE` (or `--set section.key=VALUE`). "
        "`--show-settings` lists them all with their values.",
    ),
]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="YAML file of settings.")]
Device = Annotated[str, Parameter(name="--device", help="auto, cpu, cuda, cuda:1 or mps.")]
PrecisionOption = Annotated[
    str,
    Parameter(
        name="--precision", help="auto (bf16 on GPUs that multiply in it, else fp32), fp32, bf16 or fp16."
    ),
]
EncoderPrecision = Annotated[str, Parameter(name="--precision", help="fp32, bf16 or fp16.")]
Compile = Annotated[
    bool | None,
    Parameter(
        name="--compile",
        help="Compile the network with torch.compile. Not said: on a GPU, when the work ahead pays for it.",
        negative="--no-compile",
    ),
]
Seed = Annotated[int | None, Parameter(name="--seed", help="Seed of every random draw (0 when not said).")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON instead of text.", negative=())]

FAILED = 3  # exit status: some of several items failed, the others are done
_SETTING = re.compile(r"--(?P<key>[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)+)(=(?P<value>.*))?$", re.DOTALL)
_FLAT = re.compile(r"--[A-Za-z][\w-]*$")
_NUMBER = re.compile(r"-\.?\d")
_state = {"show_settings": False}


def fold_settings(arguments: Sequence[str]) -> list[str]:
    """Rewrite every ``--section.key VALUE`` to ``--set section.key=VALUE``, which the verbs declare."""
    out: list[str] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if token == "--":
            return [*out, token, *rest]
        if token == "--show-settings":
            _state["show_settings"] = True
            continue
        match = _SETTING.match(token)
        if not match:
            out.append(token)
            continue
        out.append(_folded(match["key"], match["value"], rest))
    return out


def fold_option(arguments: Sequence[str], option: str) -> list[str] | None:
    """The same for one ``--key VALUE`` without a dot that the verb does not name; ``None`` when it is not there."""
    name = option.partition("=")[0]
    if not _FLAT.match(name):
        return None
    out = list(arguments)
    for at, token in enumerate(out):
        if token == "--":
            return None
        if token == name or token.startswith(f"{name}="):
            rest = out[at + 1 :]
            value = token.partition("=")[2] if "=" in token else None
            return [*out[:at], _folded(name[2:].replace("-", "_"), value, rest), *rest]
    return None


def _folded(key: str, value: str | None, rest: list[str]) -> str:
    """``--set=key=value``; a value that was not joined by ``=`` is taken from ``rest``, else it is a flag."""
    if value is None:
        takes_next = bool(rest) and (not rest[0].startswith("-") or bool(_NUMBER.match(rest[0])))
        value = rest.pop(0) if takes_next else "true"
    return f"--set={key}={value}"


def load_config(cls: type[C], config: Path | None = None, settings: Iterable[str] = (), **chosen: Any) -> C:
    """The resolved configuration, in the one order of :mod:`morphogen.core.presets`: class defaults, the preset that is
    chosen, the YAML file, ``--section.key`` settings, and the verb's own options.

    ``chosen`` holds dotted keys with ``__`` for the dot (``training__steps=100``); ``None`` means not chosen.
    """
    overrides: dict[str, Any] = dict(parse_settings(settings))
    overrides |= {key.replace("__", "."): value for key, value in chosen.items() if value is not None}
    resolved = cls.load(config, overrides)
    if _state["show_settings"]:
        show_settings(resolved)
        raise SystemExit(0)
    return resolved


def show_settings(config: Config) -> None:
    """Print every setting with its value, and its default where the two differ."""
    from rich.console import Console
    from rich.table import Table

    from morphogen.core.config import describe

    table = Table("setting", "value", "default", "meaning", title=type(config).__name__, title_justify="left")
    for key, default, meaning in describe(type(config)):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part) if value is not None else None
        table.add_row(f"--{key}", cell(value), cell("" if str(value) == default else default), meaning)
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def print_json(value: Any) -> None:
    """Print plain JSON on standard output."""
    import json

    from morphogen.core.files import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def result(as_json: bool, value: Any, *lines: object, failed: Sequence[str] = ()) -> int:
    """What a verb ends with: ``value`` as JSON where that was asked for, else the lines. ``failed``: why inputs were
    left out; the exit status is 3 where there are such, else 0."""
    if as_json:
        print_json({**value, "failed": list(failed)} if failed else value)
    else:
        say(*(f"failed: {each}" for each in failed), *lines)
    return 3 if failed else 0


def say(*lines: object) -> None:
    """Print what happened and where results went, on standard output."""
    for line in lines:
        print(printable(line), flush=True)


def cell(value: object) -> Text:
    """A cell of a printed table: the text as it is, never markup, printable."""
    from rich.text import Text

    return Text(printable(value))
