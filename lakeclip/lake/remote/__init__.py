"""Rows behind an address: whole chunks fetched once per machine, kept on disk, and waited for when a server is away."""
