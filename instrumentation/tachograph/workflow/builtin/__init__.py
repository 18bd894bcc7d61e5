"""The built-in step handlers, registered on import: noop, sleep, fail, http, and shell (off by default)."""

from tachograph.workflow.builtin import basic, http, shell

__all__ = ["basic", "http", "shell"]
