"""Dry run: the plan of a run from a few profiled steps, and warnings about it."""
