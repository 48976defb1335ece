"""`ecluse serve`: the champion over HTTP, by the Open Inference Protocol v2. It records nothing."""
