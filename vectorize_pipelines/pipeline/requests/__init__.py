"""Requests, by Kafka or one by one: messages become rows of collections."""
