"""Kafka as transport: clients, topics, positions and reading. What messages mean is told in `messaging`."""
