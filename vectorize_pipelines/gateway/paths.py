"""Addresses of the server that several of its parts know."""

#: Dagster's web server lies below this path, behind the gateway as well as at its own address.
PATH_PREFIX = "/dagster"
