"""Ingestion: read sources, download and validate images, skip rows that the lake holds, and write the rest."""
