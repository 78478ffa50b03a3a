"""Filters on records: written once, checked once, translated by each store."""
