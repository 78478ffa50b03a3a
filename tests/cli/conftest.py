"""No test of the commands asks the model hub: an unknown model fails at once, and not after a time-out."""

import os

# Read once, when the hub's client is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
