"""Engines: each computes the vectors of some models. Only `registry` knows which there are."""
