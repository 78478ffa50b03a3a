"""The migrations, each a module of its own, which Alembic loads by its path."""
