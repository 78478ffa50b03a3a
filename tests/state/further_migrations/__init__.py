"""A migration that only tests have: what a later version of the project would bring."""
