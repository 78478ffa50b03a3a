"""Where the checkout lies."""

from pathlib import Path

#: The folder from which `tests` is imported; processes that tests start get it as their working directory.
CHECKOUT = Path(__file__).resolve().parents[1]
