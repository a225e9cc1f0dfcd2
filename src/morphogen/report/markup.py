"""A little Markdown to HTML: paragraphs, lists, bold, italic, code, links. Everything else is text.

The text is escaped before anything is made of it, so a file name or a gene name can never become a tag.
"""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from morphogen.core.printing import printable

_CODE = re.compile(r"`([^`]+)`")
_BOLD = re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*")
_ITALIC = re.compile(r"(?<![\w*])\*(?=\S)([^*]+?)(?<=\S)\*(?![\w*])")
_LINK = re.compile(r"\[([^\]]+)\]\(((?:https?://|#)[^\s)]+)\)")
_ITEM = re.compile(r"^\s*(?:[-*]|(\d+)\.)\s+(.*)$")


def inline(text: str) -> Markup:
    """One line: ``**bold**``, ``*italic*``, ```code```, ``[text](https://…)`` or ``[text](#chapter)``."""
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(f"<code>{match[1]}</code>")
        return f"\x00{len(kept) - 1}\x00"

    html = _CODE.sub(keep, str(escape(printable(text, keep="\n\t"))))
    html = _LINK.sub(r'<a href="\2">\1</a>', html)
    html = _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", html))
    return Markup(re.sub("\x00(\\d+)\x00", lambda match: kept[int(match[1])], html))


def block(text: str) -> Markup:
    """Paragraphs and lists, separated by empty lines; a list may follow a paragraph directly."""
    html: list[str] = []
    paragraph: list[str] = []
    items: list[list[str]] = []
    ordered = False

    def close() -> None:
        nonlocal paragraph, items
        if paragraph:
            html.append(f"<p>{inline(' '.join(paragraph))}</p>")
        if items:
            tag = "ol" if ordered else "ul"
            html.append(f"<{tag}>" + "".join(f"<li>{inline(' '.join(i))}</li>" for i in items) + f"</{tag}>")
        paragraph, items = [], []

    for line in text.strip().splitlines():
        item = _ITEM.match(line)
        if not line.strip():
            close()
        elif item:
            if paragraph or (items and ordered != bool(item[1])):
                close()
            ordered = bool(item[1])
            items.append([item[2].strip()])
        elif items:
            items[-1].append(line.strip())
        else:
            paragraph.append(line.strip())
    close()
    return Markup("\n".join(html))
