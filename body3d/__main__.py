"""`python -m body3d …` is the same as `body3d …`."""

from body3d.cli import main

main()
