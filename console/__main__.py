"""`python -m console`: the `ecluse` command where its script is not on the PATH."""

from console.main import run

run()
