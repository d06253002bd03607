"""From rows to batches: the order, the pixels, the stream of batches, and Lightning's data modules."""
