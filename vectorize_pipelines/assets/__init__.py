"""Dagster's assets: what there is, with its checks and reports."""

import warnings

# Dagster says at every start that backfill policies are in beta; ours is known, and pinned by the lock file.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy` .* is currently in beta")
