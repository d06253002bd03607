"""Trained models on disk: lakeclip's own checkpoints (`native`), which know where they came from."""
