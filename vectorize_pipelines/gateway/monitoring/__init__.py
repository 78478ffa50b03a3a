"""Health and figures of an installation."""
