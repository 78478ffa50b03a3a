"""LanceDB, the embedded default."""
