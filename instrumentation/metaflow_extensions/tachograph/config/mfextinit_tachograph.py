"""Metaflow's configuration: where the environment says where to report, each run has the decorator."""

import os

# Also where only Metaflow's own code package is, without Tachograph.
TOGGLE_DECOSPECS = (
    ["tachograph"] if os.environ.get("TACHOGRAPH_URL") or os.environ.get("TACHOGRAPH_DATABASE_URL") else []
)
