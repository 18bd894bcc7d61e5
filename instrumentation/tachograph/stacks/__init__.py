"""Stacks of running steps, taken in their own process: on request, and by sampling those that take unusually long.

Only ``sys._current_frames`` and what tasks tell of themselves are read, so nothing needs privileges. There is no thread
and no cost until something is asked for.
"""
