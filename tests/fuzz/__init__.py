"""Fuzzing of all parsers of untrusted input; see README.md in this folder."""
