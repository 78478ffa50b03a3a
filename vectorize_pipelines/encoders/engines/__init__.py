"""Engines: each computes the vectors of some models. Only `registry` knows which there are.

An engine may import `base` and the helpers beside it, the encoders' `base`, `batching`, `errors`, `models` and
`hardware`, and what lies below `encoders`; no other engine, and not `registry`.
"""
