"""The HTTP API, a room for each topic."""
