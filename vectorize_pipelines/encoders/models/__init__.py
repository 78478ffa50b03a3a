"""Models as they lie on disk: found by name, vetted, described; no weights are loaded for a description."""
