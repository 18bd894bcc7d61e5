"""Kedro's own settings are kept."""
