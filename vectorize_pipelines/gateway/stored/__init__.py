"""Reading from the vector store: the store itself, and pictures of its rows."""
