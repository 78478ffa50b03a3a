def dead_letter_headers(message, error, *, attempts, run_id):
    return [("vectorize.error.class", type(error).__name__.encode())]
