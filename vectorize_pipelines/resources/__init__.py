"""Resources of runs: the encoder, the store; and how failures and figures come back to Dagster."""
