"""Record where a checkpoint came from: lineage, environment and the segments of a run."""
