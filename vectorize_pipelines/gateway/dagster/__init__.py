"""Dagster's web server behind this one."""
