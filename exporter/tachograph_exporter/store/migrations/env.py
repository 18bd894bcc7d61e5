"""Alembic's entry point: migrates on the connection it is given."""

from alembic import context

from tachograph_exporter.store.schema import metadata

connection = context.config.attributes["connection"]
# The caller's transaction surrounds the migration.
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False, render_as_batch=True)
context.run_migrations()
