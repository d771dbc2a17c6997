"""What the command line ends with."""

OK = 0  # every step ran
FAILED = 1  # anything else
USAGE = 2  # the user's mistake, one sentence on stderr
STOPPED = 3  # on request, resumable
