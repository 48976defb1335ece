"""Écluse: real-time scoring of Kafka event streams, where nothing is lost.

The ground floor: all that a producer, a consumer or another room may import.
"""

from importlib.metadata import version

__version__ = version("ecluse")
