"""Where mmdetection 2.x's users import a few names from; nothing lives here."""
