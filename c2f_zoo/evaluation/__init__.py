"""Evaluation: scoring, the search for resolutions, and reports (tables, plots, CSV files)."""
