"""What flows between the rooms: Instances, Batch and mask containers."""
