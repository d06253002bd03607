"""Helpers that the benchmark scripts share."""
