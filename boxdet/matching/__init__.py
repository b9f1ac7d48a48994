"""Which box belongs to which object: anchors, box coding, assignment, sampling."""
