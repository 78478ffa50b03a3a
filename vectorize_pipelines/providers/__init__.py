"""Remote models behind a pool of API keys."""
