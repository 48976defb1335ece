"""The trainer: from a request on its topic to a signed challenger. Start with `loop.py`."""
