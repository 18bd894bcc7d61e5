"""Engines whose own hooks report their runs, one file an engine: each imports its engine only when it is used."""
