"""Turn rows into batches: sample order, decoding, transforms, the stream of batches, and the data module."""
