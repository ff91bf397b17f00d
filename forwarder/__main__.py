"""The program's first lines: what signals do while the rest of it is imported, which takes most of a second."""

import os
import signal
import sys

INTERRUPTED = 130  # errors.Exit.INTERRUPTED, which is not imported yet


def main() -> None:
    """Nothing is open yet that would have to be closed: a signal may end the process where it stands, without a word.
    An agent that starts has nothing to drain when it is stopped, and reads the configuration anyway.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:  # else it is ignored, as for what a script starts in the background
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    if sys.argv[1:2] == ["run"]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from forwarder import cli  # this is what takes the time

    signal.signal(signal.SIGINT, interrupt)
    cli.main()


if __name__ == "__main__":
    main()
