"""Moved to stage.py; window.py still asks here."""

from pipelines.engine.stage import keep_column, keep_columns

__all__ = ["keep_column", "keep_columns"]
