"""Real servers for tests: how each is had on this machine, started and ended."""
