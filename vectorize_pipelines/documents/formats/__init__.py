"""One module per format, each with a function from a document's bytes to a `ParsedDocument`.

A new format is a module here and an entry of `recognition.FORMATS`. Where documents that were read before give another
text than before, `parsing.PARSER_VERSION` is raised.
"""
