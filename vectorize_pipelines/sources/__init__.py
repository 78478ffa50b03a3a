"""Places where content lies: files are listed and read, URIs fetched. Kafka's messages come by `kafka.sources`.

A source of a bucket's events would have its reader here and its sensor in `sensors`; a listing still says what is gone.
"""
