"""Networks between the backbone and the heads."""
