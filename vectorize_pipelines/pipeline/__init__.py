"""From items to rows in a store: what features share, with a folder for each of them."""
