"""The chapters of the demonstration, in order: one short module per task."""

CHAPTERS = ("slides", "staining", "layout", "tissue", "genes")
