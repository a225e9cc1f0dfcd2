"""Any folder of measured sections, whatever wrote it, as prepared sections on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morphogen.expression.config import PrepareConfig
from morphogen.expression.data import facts
from morphogen.expression.sections.prepare import load_section, prepare_sections, save_section
from morphogen.expression.sections.processed import is_processed, read_processed


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
) -> list[PreparedSection]:
    """Prepare a folder of HEST-1k, Space Ranger, ST tables or .h5ad with images, or of Stem's or HisDiff's
    ``processed_data``, whose embeddings are taken over: one ``<section>.h5ad`` each in ``out``."""
    if is_processed(folder):
        wanted = None if sections is None else set(sections)
        written = [
            save_section(s, Path(out) / f"{facts(s).section}.h5ad")
            for s in read_processed(folder, config.data)
            if wanted is None or facts(s).section in wanted
        ]
    else:
        written = prepare_sections(folder, out, config, sections=sections, device=device, precision=precision)
    return [_in_short(path) for path in written]


def _in_short(path: Path) -> PreparedSection:
    section = load_section(path)
    f = facts(section)
    return PreparedSection(f.section, path, f.patient, section.n_obs, section.n_vars, f.mpp, f.mpp_source)
