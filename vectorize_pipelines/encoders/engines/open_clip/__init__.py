"""Engine `open_clip`: CLIP models, images and texts in one space."""
