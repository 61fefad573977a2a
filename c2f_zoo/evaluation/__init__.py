"""Evaluation: scoring, the resolution search, tables, plots and CSV files."""
