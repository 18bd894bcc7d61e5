"""The series of ``/metrics``: totals that only grow, kept in the database.

When an execution ends, what it adds to each series is stored in the same transaction, as a *delta* of its workflow.
Deltas are absorbed into one row for each step (`rows`); a reader adds the deltas that have not been absorbed yet to the
rows. So a commit costs as much as its own executions, however many there have been, and the totals survive every
restart.

- `values`: a series, and how it grows without ever shrinking before Prometheus' eyes
- `counting`: what executions add
- `rows`: deltas and rows in the database
- `recount`: the same totals, from the executions
"""
