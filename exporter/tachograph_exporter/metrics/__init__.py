"""What ``/metrics`` of a service shows: the series that the database keeps.

- `births`: who has seen which new series as zero
- `shown_series`: stored series as children of metric families
- `workflow_metrics`: both, kept up to date, by the one service that holds the lease
"""
