"""What the library raises when the user's input, not the code, is at fault."""


class InputError(ValueError):
    """A file, option or array that cannot be used; its text is one sentence for the user. The command line exits with 2."""


class MissingExtra(ImportError):
    """An optional package is not installed; its text names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'body3d[{extra}]'")
