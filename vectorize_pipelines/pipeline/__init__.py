"""Making rows of items: the parts that features share, and a folder for each feature."""
