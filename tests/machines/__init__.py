"""Several machines on one: network namespaces, with workers in them that are killed, stalled and cut off."""
