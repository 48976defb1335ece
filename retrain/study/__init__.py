"""The size study: candidates from small to large, measured, and the smallest that is good enough. Start with `run.py`."""
