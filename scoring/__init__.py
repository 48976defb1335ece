"""The Faust workers: the path of a chunk from bytes to confirmed predictions."""
