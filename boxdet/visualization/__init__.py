"""Instances drawn on images, and figures of a training; reads structures only."""
