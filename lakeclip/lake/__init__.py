"""The lake: sources in, Deep Lake datasets, rows out. Nothing outside this folder imports deeplake."""
