"""Annotation files: JSON that names images and holds their captions, in the layouts of published data sets."""
