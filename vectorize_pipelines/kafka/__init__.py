"""Kafka as transport: clients, topics, positions and reading. What messages mean stands in `messaging`."""
