"""Any folder of measured sections, whatever wrote it, as prepared sections on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, nearest
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.expression.config import PrepareConfig
from morphogen.expression.data import facts
from morphogen.expression.sections.prepare import load_section, prepare_sections, save_section
from morphogen.expression.sections.processed import is_processed, read_processed
from morphogen.expression.sections.readers import find_sections
from morphogen.slides import Encoder, get_encoder


@dataclass(frozen=True)
class PreparedSection:
    """A section that lies prepared on disk, in short."""

    section: str
    path: Path
    patient: str  # "" = not known
    spots: int
    genes: int
    mpp: float
    mpp_source: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def prepare_folder(
    folder: Path | str,
    out: Path | str,
    config: PrepareConfig,
    *,
    sections: Iterable[str] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    spread: Spread | None = None,
    failed: dict[str, str] | None = None,
) -> list[PreparedSection]:
    """Prepare a folder of HEST-1k, Space Ranger, ST tables or .h5ad with images, or of Stem's or HisDiff's
    ``processed_data``, whose embeddings are taken over: one ``<section>.h5ad`` each in ``out``.

    With ``failed`` a section that cannot be prepared is told there, by its name, and the others go on; ``spread``
    shares the sections out.
    """
    if is_processed(folder):
        wanted = None if sections is None else set(sections)
        written = [
            save_section(s, Path(out) / f"{facts(s).section}.h5ad")
            for s in read_processed(folder, config.data)
            if wanted is None or facts(s).section in wanted
        ]
    elif failed is not None and len(names := _sections(folder, config, sections)) > 1:
        written = _spread(folder, Path(out), config, names, device, precision, spread, failed)
    else:
        written = prepare_sections(folder, out, config, sections=sections, device=device, precision=precision)
    return [_in_short(path) for path in written]


def _sections(folder: Path | str, config: PrepareConfig, wanted: Iterable[str] | None = None) -> list[str]:
    if wanted is not None:
        return list(wanted)
    return [source.section for source in find_sections(folder, config.data)]


@dataclass(frozen=True)
class _Prepare:
    """What goes to the processes that prepare sections."""

    folder: Path | str
    out: Path
    config: PrepareConfig
    device: str
    precision: str

    def load(self) -> Encoder:
        config = self.config
        return get_encoder(config.encoder, config.weights, device=self.device, precision=self.precision)

    def __call__(self, loaded: Encoder, item: Item, path: Path | None) -> Path:
        (made,) = prepare_sections(self.folder, self.out, self.config, sections=[item.name], encoder=loaded)
        return made


def _spread(
    folder: Path | str,
    out: Path,
    config: PrepareConfig,
    names: list[str],
    device: str,
    precision: str,
    spread: Spread | None,
    failed: dict[str, str],
) -> list[Path]:
    known = _sections(folder, config)
    for name in names:
        if name not in known:
            raise InputError(f"there is no section '{name}'.{nearest(name, known)}", where=folder)
    written: dict[int, Path] = {}
    replies = run_cohort(
        _Prepare(folder, out, config, device, precision),
        [Item(name) for name in names],
        spread,
        out=out,
        what="expression prepare",
        facts={"prepare": config.to_dict(), "precision": precision},
        written=lambda path: [path],
        unit="sections",
    )
    for index, reply in replies:
        if reply.error:
            failed[names[index]] = reply.error
        else:
            written[index] = reply.value
    if failed and not written and (spread is None or spread.shard is None):
        raise InputError(next(iter(failed.values())))
    return [written[index] for index in sorted(written)]


def _in_short(path: Path) -> PreparedSection:
    section = load_section(path)
    f = facts(section)
    return PreparedSection(f.section, path, f.patient, section.n_obs, section.n_vars, f.mpp, f.mpp_source)
