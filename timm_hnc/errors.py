"""The errors that a command line turns into one line and an exit code."""


class UsageError(ValueError):
    """Options that cannot work, alone or together. Exit code 2."""


class DataError(RuntimeError):
    """Data, weights or folders that cannot be used as they are, or a run that cannot go on. Exit code 1."""


def first_lines(error: Exception, length: int = 300) -> str:
    """The start of a library's error, on one line of at most that many characters."""
    text = ' '.join(str(error).split()) or repr(error)
    return text if len(text) <= length else f'{text[:length]} ...'
