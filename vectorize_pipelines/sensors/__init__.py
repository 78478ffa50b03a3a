"""Sensors: they start runs when files have changed, requests wait, or runs have failed."""
