"""From 2D joints to 3D joints: by matching, by networks."""
