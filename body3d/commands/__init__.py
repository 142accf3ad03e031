"""The commands of `body3d` and of `scripts/`: a typed description of what the user asks for, and a function that does it."""
