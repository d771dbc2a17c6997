"""The errors that are the user's to mend."""


class UsageError(ValueError):
    """A user's mistake: one sentence with what was given, what is allowed and the way out.

    The command line prints it without a traceback and exits with code 2.
    """


class Unavailable(UsageError):
    """Something of a hub that cannot be had now; the request itself may be right."""
