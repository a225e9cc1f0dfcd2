"""Configuration: frozen pydantic models, YAML in, ``--section.key value`` on top.

A configuration class lives beside what it configures. An unknown key is an error that names the nearest known
one, and the resolved configuration is saved with every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from morphogen.core.errors import ConfigError, nearest
from morphogen.core.presets import layered, nested, spelt_out
from morphogen.core.reading.documents import parse_yaml, read_yaml, shown

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _Metaclass
else:
    _Metaclass = type(BaseModel)


class _Explained(_Metaclass):
    """Construction raises :class:`ConfigError`.

    On the metaclass because a custom ``__init__`` would also run for nested sections and lose the full key.
    """

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise _explain(cast("type[Config]", cls), error) from None


class Config(BaseModel, metaclass=_Explained):
    """Base of every configuration: immutable, no unknown keys, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    ALIASES: ClassVar[Mapping[str, str]] = {}
    """Short names of settings: ``seed`` for ``training.seed``."""

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values under those that were given (nested, short names spelt out): the preset that they choose."""
        return {}

    @model_validator(mode="before")
    @classmethod
    def _spelt_out(cls, values: Any) -> Any:
        return spelt_out(cls, values) if isinstance(values, Mapping) and cls.ALIASES else values

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """No text for a number and no truth value either, which pydantic would turn into one."""
        field = cls.model_fields.get(info.field_name or "")
        wrong = misplaced(value, field.annotation) if field is not None else None
        if wrong is not None:
            raise ValueError(wrong)
        return value

    @classmethod
    def load(cls, path: Path | str | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Settings in the one order of :mod:`morphogen.core.presets`: class defaults, the preset that is chosen, a
        YAML file (optional), and dotted overrides such as ``{"train.lr": "1e-4"}``.

        Values of overrides may be strings; they are parsed as YAML scalars, so ``"1e-4"``, ``"true"``,
        ``"[1, 2]"`` and ``"null"`` mean what they say. Raises :class:`ConfigError` on unknown keys or bad values
        and :class:`InputError` when the file is missing or is not a YAML mapping.
        """
        values = read_yaml(Path(path)) if path is not None else {}
        given = {
            key: _scalar(value) if isinstance(value, str) else value
            for key, value in (overrides or {}).items()
        }
        _check_sections(values, given)
        values = layered(cls, values, nested(given))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise _explain(cls, error, where=path) from None

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed; short names (:attr:`ALIASES`) reach into their section."""
        short = {key: changes.pop(key) for key in list(changes) if key in self.ALIASES}
        for section, inner in spelt_out(type(self), short).items():
            changes[section] = changes.get(section, getattr(self, section)).replace(**inner)
        unknown = [key for key in changes if key not in type(self).model_fields]
        if unknown:
            hint = nearest(unknown[0], type(self).model_fields)
            raise ConfigError(f"unknown setting '{unknown[0]}'.{hint}", where=type(self).__name__)
        current = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**current, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values (JSON and YAML safe)."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def save(self, path: Path | str) -> Path:
        """Write the resolved configuration as YAML, atomically."""
        from morphogen.core.files import write_text

        return write_text(path, self.to_yaml())


def describe(cls: type[Config], prefix: str = "") -> list[tuple[str, str, str]]:
    """Every setting as ``(dotted name, default, description)``, nested sections flattened."""
    rows = []
    for name, field in cls.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            rows += describe(section, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else str(field.get_default(call_default_factory=True))
        rows.append((f"{prefix}{name}", default, field.description or ""))
    return rows


def misplaced(value: Any, annotation: Any) -> str | None:
    """Why a value cannot be meant for an annotation: text or a truth value where only numbers belong."""
    kinds = _leaves(annotation)
    if not kinds <= {int, float, bool, type(None)} or not kinds & {int, float}:
        return None
    items = list(value.values()) if isinstance(value, Mapping) else value
    for item in items if isinstance(items, list | tuple) else [items]:
        if isinstance(item, bool) and bool not in kinds:
            return "it must be a number, not true or false"
        if isinstance(item, str):
            return "it must be a number, not text"
    return None


def _leaves(annotation: Any) -> set[Any]:
    """The types that values of an annotation can have, those inside containers for the containers."""
    if annotation is Ellipsis:
        return set()
    if get_origin(annotation) is Annotated:
        return _leaves(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return {type(each) for each in get_args(annotation)}
    inner = get_args(annotation)
    if get_origin(annotation) in (dict, Mapping):
        inner = inner[1:]
    return {leaf for each in inner for leaf in _leaves(each)} if inner else {annotation}


def section_of(annotation: Any) -> type[Config] | None:
    """The nested configuration class of a field annotation (also ``Section | None``), else ``None``."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def _scalar(text: str) -> Any:
    try:
        value = parse_yaml(text)
    except ValueError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            return text
    if value is None and text.strip().lower() not in ("null", "none", "~"):
        return text
    return value


def _check_sections(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """A dotted override must not reach into what the file gives as a single value."""
    for key in overrides:
        inner: Any = values
        for section in key.replace("-", "_").split(".")[:-1]:
            inner = inner.get(section, {}) if isinstance(inner, Mapping) else inner
            if inner is not None and not isinstance(inner, Mapping):
                raise ConfigError(f"'{section}' is a single value, not a section", where=key)
            inner = inner or {}


def _explain(cls: type[Config], error: ValidationError, where: object = None) -> ConfigError:
    """One sentence for the first problem pydantic found."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        owner: type[Config] = cls
        for part in location[:-1]:
            inner = section_of(owner.model_fields[part].annotation) if part in owner.model_fields else None
            owner = inner or owner
        hint = nearest(location[-1], owner.model_fields)
        return ConfigError(f"unknown setting '{key}'.{hint}", where=where)
    if problem["type"] == "missing":
        return ConfigError(f"setting '{key}' is required", where=where)
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not key:
        return ConfigError(message, where=where)
    if isinstance(problem["input"], (dict, BaseModel)):  # a rule about a section as a whole
        return ConfigError(f"in section '{key}', {message}", where=where)
    return ConfigError(f"setting '{key}' is {shown(problem['input'])}, but {message}", where=where)
