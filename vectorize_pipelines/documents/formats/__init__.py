"""One module per format. Each has a function from the file's bytes to a `ParsedDocument`; `parsing` picks it."""
