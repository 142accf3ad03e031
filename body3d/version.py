"""The version of the package, which its results carry."""

__version__ = "0.1.0"
