"""`fastrl` as on a machine of another name, less patient: `... NAME fastrl's words`."""

import socket
import sys

from fastrl import watch
from fastrl.cli import main

if __name__ == "__main__":
    name, *words = sys.argv[1:]
    socket.gethostname = lambda: name
    watch.SILENCE_S = 5.0
    sys.exit(main(words))
