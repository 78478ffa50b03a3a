"""Runs of Dagster, as this project launches, tags, watches and removes them."""
