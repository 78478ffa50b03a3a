"""Places where content lies: files are listed and read, URIs fetched. Kafka's messages come by `kafka.sources`."""
