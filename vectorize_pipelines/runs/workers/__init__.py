"""Runs that are executed by warm workers on several hosts: Celery processes, which keep their models loaded."""
