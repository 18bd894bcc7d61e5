"""``tachograph exec`` and ``tachograph step``: any command as a run, at little cost.

What runs here is on the way of every command, so it imports a few modules of the standard library, and of this
project's library those that hold values only: no msgspec, no OpenTelemetry, no HTTP client. Events are written in their
wire form.
"""
