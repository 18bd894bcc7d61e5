"""A Kedro project whose runs are recorded."""
