"""One static HTML page: chapters, figures, tables, pictures to enlarge and compare, code, provenance.

The page needs no network and no other file: style, script and pictures are inside. It may be mailed,
archived beside the results or opened from disk.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from morphogen._version import __version__
from morphogen.core.errors import InputError
from morphogen.core.files import plain, write_text
from morphogen.core.printing import printable
from morphogen.report.images import Picture, picture
from morphogen.report.markup import block, inline
from morphogen.report.tables import table


@dataclass
class _Chapter:
    title: str
    anchor: str
    blocks: list[dict[str, Any]] = field(default_factory=list)


class Report:
    """A page that is built from top to bottom and saved.

    Every method adds one thing to the current chapter and returns the report, so calls may be chained::

        report = Report("Virtual staining", "3 slides")
        report.chapter("Results").text("DAB agrees **well**.").table(rows, best={"Pearson": "max"})
        report.images([he, predicted, real], ["H&E", "predicted", "real"])
        report.save("report.html")

    Text is a little Markdown (:mod:`morphogen.report.markup`); everything is escaped.
    """

    def __init__(self, title: str, subtitle: str = "", *, longest: int = 1800) -> None:
        self.title, self.subtitle = title, subtitle
        self._longest = longest
        self._chapters = [_Chapter("", "top")]

    def chapter(self, title: str, lead: str = "") -> Report:
        """Begin a chapter; it appears in the table of contents. ``lead`` is its first paragraph."""
        taken = {c.anchor for c in self._chapters}
        anchor = base = _slug(title) or "chapter"
        number = 2
        while anchor in taken:
            anchor, number = f"{base}-{number}", number + 1
        self._chapters.append(_Chapter(title, anchor))
        return self.text(lead) if lead else self

    def section(self, title: str) -> Report:
        """A heading within the chapter."""
        return self._add("section", title=title)

    def text(self, markdown: str) -> Report:
        """Paragraphs and lists."""
        return self._add("text", html=block(markdown))

    def note(self, markdown: str, kind: Literal["note", "warning"] = "note") -> Report:
        """A remark set apart, for example what a table must not be read as."""
        if kind not in ("note", "warning"):
            raise InputError(f"a remark is a 'note' or a 'warning', not '{kind}'")
        return self._add("note", html=block(markdown), remark=kind)

    def numbers(self, figures: Mapping[str, object]) -> Report:
        """A few headline figures, label → value (already formatted, or numbers)."""
        shown = {label: f"{v:.3g}" if isinstance(v, float) else str(v) for label, v in figures.items()}
        return self._add("numbers", figures=shown)

    def table(
        self,
        data: Any,
        caption: str = "",
        *,
        best: Mapping[str, Literal["max", "min"]] | None = None,
        digits: int = 3,
        index: bool | None = None,
        header: Sequence[str] | None = None,
        longest: int = 500,
    ) -> Report:
        """A table from a DataFrame, a list of dicts, a dict of columns or rows; see
        :func:`~.tables.table`."""
        made = table(data, caption, best=best, digits=digits, index=index, header=header, longest=longest)
        return self._add("table", table=made, caption=inline(caption))

    def figure(self, source: Any, caption: str = "", *, alt: str = "", width: int | None = None) -> Report:
        """A matplotlib figure, an image array, a PIL image or a file; opens enlarged when clicked.

        ``width`` limits the width on the page in pixels; ``alt`` describes the picture to those who cannot
        see it (the caption is taken when it is empty).
        """
        made = self._picture(source)
        return self._add("figure", picture=made, caption=inline(caption), alt=alt or caption, width=width)

    def images(
        self,
        sources: Sequence[Any],
        captions: Sequence[str] = (),
        caption: str = "",
        *,
        compare: bool = False,
    ) -> Report:
        """Pictures side by side, each with its caption; on a narrow screen they wrap.

        ``compare=True`` lays exactly two pictures of one size over each other, with a slider between them.
        """
        if not len(sources):
            raise InputError("a row of pictures needs at least one")
        if captions and len(captions) != len(sources):
            raise InputError(f"{len(sources)} pictures but {len(captions)} captions")
        made = [self._picture(source) for source in sources]
        names = list(captions) if captions else [""] * len(made)
        if compare:
            if len(made) != 2:
                raise InputError(f"two pictures are compared with a slider, not {len(made)}")
            a, b = made
            if abs(a.width * b.height - b.width * a.height) > 0.02 * a.width * b.height:
                raise InputError(
                    f"pictures to compare have one shape, these {a.width} × {a.height} and {b.width} × {b.height}"
                )
        pairs = list(zip(made, names, strict=True))
        return self._add("compare" if compare else "images", pairs=pairs, caption=inline(caption))

    def code(self, source: str, language: str = "python", caption: str = "") -> Report:
        """A snippet with a button that copies it; ``language`` is ``python``, ``bash``, ``yaml``, ``json``
        …"""
        try:
            lexer = get_lexer_by_name(language)
        except ClassNotFound:
            raise InputError(
                f"unknown language '{language}' of a snippet; python and bash are known"
            ) from None
        html = Markup(highlight(source.strip("\n"), lexer, HtmlFormatter(nowrap=True)))
        return self._add("code", html=html, language=language, caption=inline(caption))

    def extend(self, other: Report) -> Report:
        """Append the chapters of another report, for pages whose first words are known last."""
        self._chapters += [chapter for chapter in other._chapters if chapter.title or chapter.blocks]
        return self

    def provenance(self, facts: Mapping[str, Any], title: str = "How this was made") -> Report:
        """What made the results (settings, seeds, hashes, versions), folded away until it is asked for."""
        return self._add("provenance", title=title, facts=_flat(plain(dict(facts))))

    def html(self) -> str:
        """The page."""
        chapters = [c for c in self._chapters if c.title or c.blocks]
        return _template().render(
            title=self.title,
            subtitle=inline(self.subtitle),
            chapters=chapters,
            style=Markup(_asset("report.css") + "\n" + _code_style()),
            script=Markup(_asset("report.js")),
            version=__version__,
        )

    def save(self, path: Path | str) -> Path:
        """Write the page; whole or not at all."""
        return write_text(path, self.html())

    def _add(self, kind: str, **content: Any) -> Report:
        self._chapters[-1].blocks.append({"kind": kind, **content})
        return self

    def _picture(self, source: Any) -> Picture:
        return picture(source, longest=self._longest)


def _slug(title: str) -> str:
    text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted keys; lists of plain values on one line."""
    if isinstance(value, Mapping) and value:
        return [
            row
            for key, item in value.items()
            for row in _flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [(prefix, json.dumps(value, ensure_ascii=False))]
    if isinstance(value, list):
        return [(prefix, ", ".join(str(item) for item in value))]
    return [(prefix, "–" if value is None else str(value))]


def _asset(name: str) -> str:
    return (files("morphogen.report") / "assets" / name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """What the template prints: names of others without characters that cannot be seen."""
    return printable(value, keep="\n\t") if type(value) is str else value


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    return environment.from_string(_asset("report.html.j2"))


@cache
def _code_style() -> str:
    light = HtmlFormatter(style="friendly").get_style_defs(".code code")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".code code")
    wanted = [line for line in light.splitlines() if line.startswith(".code code .")]
    night = [line for line in dark.splitlines() if line.startswith(".code code .")]
    return "\n".join([*wanted, "@media (prefers-color-scheme: dark) {", *night, "}"])
