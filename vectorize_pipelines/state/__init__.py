"""State that outlives a run: files and tables below VECTORIZE_HOME, or in the database of the settings."""
