"""Keep the commands and classes of train-CLIP working."""
