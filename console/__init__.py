"""The `ecluse` command, the development broker and the demo."""
