"""Folders of image and caption files, read in place."""
