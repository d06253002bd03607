"""Reading Deep Lake datasets and folders of pairs. No other package imports deeplake."""
