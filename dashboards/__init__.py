"""Dashboards and rules, as code: `boards` and `rules` say what there is, `generate` writes it down."""
