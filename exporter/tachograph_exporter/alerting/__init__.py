"""Recording rules and alerts for Prometheus, generated from limits per workflow.

- `thresholds`: the limits, from `thresholds.toml` and from a user's file
- `promql`: queries that native and classic histograms answer
- `recording_rules`, `alerts`: the rules
- `rule_files`: the same as files for Prometheus
"""
