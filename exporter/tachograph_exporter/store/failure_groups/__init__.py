"""Failures by cause.

`fingerprint` says which failures have one cause, from a message's template (`template`) and the own functions of a
stack (`frames`). `rows` keeps an occurrence of each failure and a row for each group, in the transaction that stores
the failure; `reading` adds them up. `backfill` groups what was stored before there were groups.
"""
