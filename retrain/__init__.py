"""From a labelled file to a published model."""
