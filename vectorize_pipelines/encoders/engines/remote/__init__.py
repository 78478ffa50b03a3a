"""The engine `remote`: embeddings of a provider that speaks OpenAI's protocol, asked with keys of the pool."""
