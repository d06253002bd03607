"""Statistics of a lake: numbers over its rows, and sample rows to show."""
