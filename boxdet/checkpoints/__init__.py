"""Checkpoints: read safely, written atomically, loaded with a report."""
