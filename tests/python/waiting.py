"""What the tests in Python have in common: to find something wrong, and to wait for something with a limit."""

import time


class Failure(Exception):
    """Something is not as it should be."""


def check(is_so, otherwise):
    """`otherwise` says what is wrong, where it is not so."""
    if not is_so:
        raise Failure(otherwise)


def wait_until(limit_seconds, what, look, every_seconds=0.05):
    """Waits for a true answer of `look`, and answers it. `what` says, or is asked, what is waited for."""
    until = time.monotonic() + limit_seconds
    while True:
        if found := look():
            return found
        if time.monotonic() > until:
            raise Failure(f"not within {limit_seconds} s: {what() if callable(what) else what}")
        time.sleep(every_seconds)
