"""Bridges: processes that report the runs of an engine which tells of them by its own server."""
