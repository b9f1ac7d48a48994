"""Detector families beyond the core, a file each; ``boxdet.registry.FAMILIES`` says which names bring which file."""
