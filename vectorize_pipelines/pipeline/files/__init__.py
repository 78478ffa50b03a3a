"""Files of a folder or bucket: what changed becomes rows of a collection."""
