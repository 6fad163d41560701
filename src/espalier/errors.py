"""The whole exception tree of Espalier, in one place.

Every message names what was looked at (file, tensor, stage, option), what was found there and what
would have been right, so that one line on standard error is enough to act on.
"""


class EspalierError(Exception):
    """Base of every error that Espalier raises on purpose."""


class FormatError(EspalierError):
    """A file, or a part of one, is not what it says it is."""


class CorruptFile(FormatError):
    """The bytes contradict a checksum, a bound or each other."""


class TruncatedFile(FormatError):
    """The bytes end before what they declare."""


class UnsupportedVersion(FormatError):
    """The file needs a version or a feature that this reader does not have."""


class InvalidArgument(EspalierError, ValueError):
    """An option or argument is outside what it may be."""


class UnknownMethod(EspalierError, LookupError):
    """No method of that name is registered."""


class MissingDependency(EspalierError, ImportError):
    """An optional package is needed and not installed; the message names the extra."""


class DataUnavailable(EspalierError, OSError):
    """A data set is on no disk that was looked at, and could not be downloaded."""


class EspalierWarning(UserWarning):
    """Something was done differently from what was asked, and why."""


def first_line(error: BaseException, limit: int = 200) -> str:
    """What ``error`` says, in one line of at most ``limit`` characters, for a message of ours.

    Examples
    --------
    >>> first_line(ValueError("no such layer\\nat line 3"))
    'no such layer'
    >>> first_line(KeyboardInterrupt())
    'KeyboardInterrupt'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]
