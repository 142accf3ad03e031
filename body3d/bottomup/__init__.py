"""From an image to the 2D joints of everybody in it, without boxes."""
