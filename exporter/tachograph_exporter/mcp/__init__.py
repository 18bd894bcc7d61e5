"""Answers for agents: the tools of the Model Context Protocol. Only `server` and `http_door` import its SDK."""
