"""When runs start without a clock: files that changed, requests that wait, runs that failed."""
