"""A worker's throughput, memory and latency beside a hand-written loop and plain Faust: ``python -m benchmarks``."""
