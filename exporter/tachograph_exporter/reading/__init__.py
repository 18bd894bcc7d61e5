"""Questions about runs, and who answers them: a database, or a service that has one."""
