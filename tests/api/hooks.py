"""What schemathesis does before each request."""

import itertools

import schemathesis

ADDRESSES = itertools.count(1)


@schemathesis.hook
def before_call(context, case, kwargs):
    """Each request comes from an address of its own, by way of a proxy that is believed: an address that sends wrong
    passwords is refused for a while, and schemathesis expects to be told each time that they are wrong."""
    number = next(ADDRESSES)
    case.headers["X-Forwarded-For"] = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
