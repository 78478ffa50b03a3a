"""Taking requests in, and what became of them."""
