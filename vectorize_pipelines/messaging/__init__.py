"""The contract of the topics: requests, results, dead letters, cancellations."""
