"""Text, images and documents become vectors in the user's vector store, run by Dagster.

Upper half (thin, speaks Dagster): `definitions`, `partitions`, `jobs`, `schedules`, `assets`, `sensors`,
`resources`. Lower half (a plain library, no Dagster import): everything else.
`docs/architecture.md` has the picture.
"""
