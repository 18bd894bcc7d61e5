"""Rollups: totals of ended executions, counted as they end, so that reading them never costs the number of executions.

A row of ``workflow_rollups`` holds the `WorkflowTotals` of everything of one workflow that *ended* in one period: five
minutes (``5m``), an hour (``1h``), a day (``1d``), a calendar month (``1mo``) or all time (``all``), in UTC. An
execution is counted whole, with its steps, in the transaction in which it ends. That writes one row: the newest five
minutes, the *head*. When the head moves on, the periods it leaves are added up into the row above:

- an hour has a row once a later hour has begun, a day once a later day has;
- the month's row and the ``all`` row hold the days that have a row;
- five-minute rows are kept for `FIVE_MINUTE_DAYS` days before the head's day.

An execution that ends late is added to every row that already covers its time. So the rows and their contents depend on
the executions alone, not on the order of events: `expected_rows` computes the same rows, to the byte.

Any range of time is then a few rows of each kind, plus the executions at its two ragged edges (`read`).
"""
