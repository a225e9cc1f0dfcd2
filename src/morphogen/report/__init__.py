"""Reports: figures in the style of the project, and one self-contained HTML page for any result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphogen.report.html import Report

__all__ = ["Report"]


def __getattr__(name: str) -> Any:
    if name == "Report":
        from morphogen.report.html import Report

        return Report
    raise AttributeError(f"module 'morphogen.report' has no attribute '{name}'")
