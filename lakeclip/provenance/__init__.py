"""What lets a run be trusted: whole checkpoints, faults that say what to do, where weights come from, a second run."""
