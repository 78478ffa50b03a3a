"""One queue for everything that is encoded for clients."""
