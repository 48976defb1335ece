"""The drift monitor: from what workers count to reports, episodes and requests for a new model."""
