"""Standard output and error whose reader may go away."""

import errno
import io
import os
import sys

GONE = (errno.EPIPE, errno.EIO)  # a closed pipe, and a terminal that has been closed
NAMES = {1: "standard output", 2: "standard error"}


class _Lasting(io.FileIO):
    """A stream to a file descriptor, which becomes /dev/null once nobody reads it."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what libraries write to it themselves, too
            os.close(nowhere)
            if error.errno not in GONE:
                error.filename = NAMES[self.fileno()]
                raise
        return len(data)


def outlive_readers() -> None:
    """Makes this process go on, with the same exit status, when what reads its output ends, as in `| head`.

    Streams that were closed before are /dev/null: the next file that is opened would get their number, and what
    libraries log would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):  # not one that a test put there
            buffer = io.BufferedWriter(_Lasting(number, "w", closefd=False))
            form = {"encoding": "utf-8"}  # of a stream that was closed
            if stream is not None:
                lines = stream.line_buffering or stream.write_through
                form = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": lines}
            setattr(sys, name, io.TextIOWrapper(buffer, **form))
