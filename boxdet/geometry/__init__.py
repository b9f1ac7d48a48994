"""Boxes, masks and keypoints as numbers: torch, torchvision.ops and numpy, nothing of ours."""
