"""Transforms: each takes a sample dict (see ``datasets.sample_keys``) and returns it changed, or None to drop it."""
