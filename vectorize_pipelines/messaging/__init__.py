"""Kafka: messages, topics, results, dead letters, cancellations; and the callbacks that tell of results over HTTP."""
