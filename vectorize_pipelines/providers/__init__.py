"""Remote models behind a pool of API keys: calls that survive what providers do, chat and embeddings."""
