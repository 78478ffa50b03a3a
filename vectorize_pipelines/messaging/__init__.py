"""Messages in and out of Kafka: what they look like, where they lie, and how they are sent."""
