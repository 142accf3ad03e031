"""Data sets: each file reads one format from its folder and says clearly what is missing; nothing here downloads."""
