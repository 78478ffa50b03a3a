"""Generations: a collection embedded again with another model or other passages, while it is used."""
