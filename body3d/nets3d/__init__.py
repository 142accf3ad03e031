"""Networks from a crop, or an image, to 3D joints directly."""
