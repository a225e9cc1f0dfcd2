"""Models of lazyslide-models by name, from weights on disk or the hub, without running code that weights may hold."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphogen.core.errors import (
    ConfigError,
    DependencyError,
    InputError,
    MorphogenError,
    WeightsError,
    nearest,
)
from morphogen.slides.encoders import hub
from morphogen.slides.encoders.plain import plain_file, tensors_only

PREFIX = "lazyslide:"


@dataclass(frozen=True)
class Foreign:
    """``lazyslide:NAME[:PART][=WEIGHTS]``: a model of lazyslide-models, what of it is meant, and its weights."""

    name: str
    part: str = ""
    weights: Path | None = None

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{PREFIX}{self.name}" + (f":{self.part}" if self.part else "")

    @classmethod
    def parse(cls, text: str) -> Foreign:
        """:class:`ConfigError` for anything else."""
        named, _, weights = text.partition("=")
        if not named.startswith(PREFIX) or not named.removeprefix(PREFIX):
            raise ConfigError(
                f"'{text}' is not of the form lazyslide:NAME, lazyslide:NAME:PART or lazyslide:NAME=WEIGHTS",
                where="--baseline",
            )
        name, _, part = named.removeprefix(PREFIX).partition(":")
        return cls(name, part, Path(weights).expanduser() if weights else None)


def parsed(texts: Iterable[str]) -> list[Foreign]:
    """Each once, in order; :class:`ConfigError` where two would have one name in the table."""
    found = [Foreign.parse(text) for text in texts]
    labels = [each.label for each in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ConfigError(f"'{twice}' comes more than once", where="--baseline")
    return found


@dataclass(frozen=True)
class Source:
    """Where the weights of a model come from. files: name in the folder → argument of its constructor. The first is
    the network's, and may be given alone."""

    repository: str
    files: dict[str, str]
    plain: bool = True  # a file of tensors that can be read without running it


SOURCES = {
    "gigatime": Source("prov-gigatime/GigaTIME", {"model.pth": "model_path"}),
    "gigatime-flash": Source("prov-gigatime/gigatime-flash", {"model.pth": "model_path"}),
    "stpath": Source("tlhuang/STPath", {"stfm.pth": "model_path", "symbol2ensembl.json": "gene_voc_path"}),
    "path2space": Source("RendeiroLab/LazySlide-models", {}, plain=False),
    "rosie": Source("ericwu09/ROSIE", {}, plain=False),
    "deepspotm": Source("ratschlab/DeepSpotM", {}),
}


def model_class(name: str) -> Any:
    """The class of a model by name; :class:`ConfigError` that suggests the nearest for an unknown one."""
    from lazyslide_models import MODEL_REGISTRY

    if name not in MODEL_REGISTRY:
        raise ConfigError(
            f"lazyslide-models has no model '{name}'.{nearest(name, MODEL_REGISTRY)}", where="--baseline"
        )
    return MODEL_REGISTRY[name]


def load_foreign(model: Foreign, **options: Any) -> Any:
    """An instance of the model, in eval mode on the CPU.

    options: of its constructor. Raises :class:`WeightsError` where its weights are not here, gated, damaged or of a
    form that only runs as code; :class:`DependencyError` where its code is a package that is not installed.
    """
    cls = model_class(model.name)
    source = SOURCES.get(model.name)
    if source is not None and not source.plain:
        raise WeightsError(
            "lazyslide-models reads its weights in a form that runs what is in the file",
            where=model.label,
            fix="Run it in LazySlide, and give its results: --prediction FILE or --other NAME=FOLDER",
        )
    with tempfile.TemporaryDirectory(prefix="morphogen-foreign-") as place, _explained(model, cls, source):
        if model.weights is not None:
            options |= _files(model, source, Path(place))
        elif source is not None and source.files and not hub.has_token() and not _cached(source):
            if bool(cls.is_gated):
                raise _missing(model, cls, source, "no file was given, and there is no token")
        accepted = inspect.signature(cls.__init__).parameters
        with tensors_only(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # genes it does not know are counted by us
            return cls(**{key: value for key, value in options.items() if key in accepted})


def _files(model: Foreign, source: Source | None, place: Path) -> dict[str, str]:
    """Arguments of the constructor for the weights that the user named: a file, or a folder with all of them."""
    assert model.weights is not None
    given = model.weights
    if not given.exists():
        raise WeightsError("there are no weights here", where=given)
    if source is None or not source.files:
        raise WeightsError(
            f"'{model.name}' takes no weights from a file", where=model.label, fix="Leave =WEIGHTS out"
        )
    folder = given if given.is_dir() else given.parent
    out = {}
    for number, (name, argument) in enumerate(source.files.items()):
        path = given if number == 0 and given.is_file() else folder / name
        if not path.is_file():
            if number == 0 or given.is_dir():
                raise WeightsError(
                    f"there is no {name} here",
                    where=folder,
                    fix=f"Give a folder with {' and '.join(source.files)}",
                )
            continue  # beside a file named alone: from the hub
        out[argument] = str(plain_file(path, place / name) if path.suffix != ".json" else path)
    return out


def _cached(source: Source) -> bool:
    return hub.cached(source.repository, next(iter(source.files)))


def _missing(model: Foreign, cls: Any, source: Source | None, reason: str) -> WeightsError:
    page = f"https://huggingface.co/{source.repository}" if source is not None else "its authors"
    if bool(cls.is_gated):
        return WeightsError(
            f"its weights are gated and not on this machine ({reason})",
            where=model.label,
            fix=f"Ask for access at {page}, then set HF_TOKEN, or give {PREFIX}{model.name}=FILE",
        )
    return WeightsError(
        f"its weights are not on this machine and could not be downloaded ({reason})",
        where=model.label,
        fix=f"Connect to the network, or give {PREFIX}{model.name}=FILE with a download of {page}",
    )


@contextmanager
def _explained(model: Foreign, cls: Any, source: Source | None) -> Iterator[None]:
    """What a constructor of others raises, in one sentence of ours."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except MorphogenError:
        raise
    except ImportError as error:
        raise DependencyError(f"it cannot be built ({_line(error)})", where=model.label) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise _missing(model, cls, source, type(error).__name__) from None
    except Exception as error:
        if model.weights is None and isinstance(error, OSError):
            raise _missing(model, cls, source, type(error).__name__) from None
        if isinstance(error, ValueError):  # of its arguments: an organ, genes, a vocabulary
            raise InputError(_line(error), where=model.label) from None
        raise WeightsError(
            f"its weights do not fit ({_line(error)})", where=model.weights or model.label
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
