"""Dashboards and rules as code. `boards`, `recording_rules` and `alerts` define them; `generate` writes the files."""
