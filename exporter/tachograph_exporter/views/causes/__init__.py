"""Why a run was slow or failed: what happened in it, and what sets it apart from the usual runs of its workflow.

`reading` reads a run and a sample of its workflow's runs; everything else is pure functions on these values.
"""
