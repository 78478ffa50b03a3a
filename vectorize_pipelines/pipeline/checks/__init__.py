"""Checks of what a store holds, for the asset checks and the commands."""
