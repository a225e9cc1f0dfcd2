"""One precedence of settings, for every verb of every room and for Python:

    class defaults  <  preset of the recipe and size  <  YAML file  <  command line

A preset fills only what the user left unset. It belongs to a configuration class (:meth:`Config.preset`) and is chosen
by what the user gave, wherever it was given: ``--size paper`` above a YAML file lays the paper's preset *under* that
file. So that nothing is set by accident, the default of every option on the command line is ``None``: not chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

from morphogen.core.errors import ConfigError


class _Configured(Protocol):
    """What a configuration class says about its presets and short names."""

    ALIASES: ClassVar[Mapping[str, str]]

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]: ...


def layered(cls: type[_Configured], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values from the lowest layer to the highest, with the preset they choose underneath.

    >>> from morphogen.expression.config import ExpressionConfig
    >>> values = layered(ExpressionConfig, {"recipe": "stem", "training": {"steps": 5}}, {"size": "paper"})
    >>> values["training"]["steps"], values["training"]["batch_size"]
    (5, 256)
    """
    given: dict[str, Any] = {}
    for layer in layers:
        given = merged(given, spelt_out(cls, layer))
    return merged(cls.preset(given), given)


def merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, section by section; neither is changed.

    >>> merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}})
    {'a': {'x': 1, 'y': 4}, 'b': 3}
    """
    out = dict(low)
    for key, value in high.items():
        below = out.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        out[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return out


def spelt_out(cls: type[_Configured], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the short names of ``cls`` (``seed`` for ``training.seed``) put where they belong; what the same
    layer says in full stays."""
    out = dict(values)
    for short, full in cls.ALIASES.items():
        if short not in out:
            continue
        value, (section, _, name) = out.pop(short), full.rpartition(".")
        below = out.get(section, {})
        if isinstance(below, Mapping):
            out[section] = {name: value, **below}
        elif hasattr(below, "replace"):  # a section built in Python
            out[section] = below.replace(**{name: value})
    return out


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections: ``{"training.lr": 1}`` → ``{"training": {"lr": 1}}``.

    >>> nested({"training.lr": 1, "training.steps": 2})
    {'training': {'lr': 1, 'steps': 2}}
    """
    out: dict[str, Any] = {}
    for key, value in dotted.items():
        *sections, last = key.replace("-", "_").split(".")
        inner = out
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"'{section}' is a single value, not a section", where=key)
        inner[last] = value
    return out


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """``section.key=value`` lines of the command line as dotted keys; the last of a key counts."""
    out: dict[str, str] = {}
    for setting in settings:
        key, found, value = setting.partition("=")
        if not found:
            raise ConfigError(f"'{setting}' is not of the form key=value", where="--set")
        out[key.strip()] = value
    return out
