"""Looking at results: bodies over photos, keypoints on images, pictures from four sides, a window to walk around in."""
