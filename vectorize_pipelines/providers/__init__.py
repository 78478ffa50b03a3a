"""Remote models behind API keys: the key pool, calls that survive what providers do, chat and embeddings."""
