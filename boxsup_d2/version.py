"""The version of this package, as files that it writes name it."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("boxsup_d2")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
