"""What can go wrong with the store.

StoreError
├── BadDatabaseURL       the URL names no database Tachograph can use
├── CannotOpen           the database cannot be opened (no such directory, no permission, not a database)
└── NewerSchema          the database was made by a newer Tachograph
"""


class StoreError(Exception):
    """Base of the store's errors; the message says what to do."""


class BadDatabaseURL(StoreError):
    """The URL names no database Tachograph can use."""


class CannotOpen(StoreError):
    """The database cannot be opened."""


class NewerSchema(StoreError):
    """The database was made by a newer Tachograph."""
