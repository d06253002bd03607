"""The training step, what it optimises with, and the run around it."""
