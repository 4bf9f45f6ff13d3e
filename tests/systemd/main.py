"""Shiparr as a service: installed from its package on a real systemd, and checked from outside."""

import argparse
import os
import signal
import sys
import time
import traceback

from host import SERVICE, Host
from scenarios import ALL, FIRST, Scenarios, with_needs
from stacks import Stacks
from waiting import Failure

JOURNAL_LINES = 40


def main():
    parser = argparse.ArgumentParser(prog="tests/systemd/run", description=__doc__)
    parser.add_argument("--only", default=",".join(ALL), help="scenarios, separated by commas")
    parser.add_argument("--package", required=True)
    parser.add_argument("--next-package", required=True)
    parser.add_argument("--keep", action="store_true", help="the host stays, for a look into it")
    arguments = parser.parse_args()
    chosen = set(arguments.only.split(","))
    if unknown := chosen - set(ALL):
        parser.error(f"unknown scenarios: {', '.join(sorted(unknown))} (known: {', '.join(ALL)})")

    # Whoever ends it at its limit gets the containers removed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    host = Host(f"shiparr-systemd-{os.getpid()}")
    stacks = Stacks(host)
    try:
        host.boot()
        stacks.install()
        print(f"systemd: the host is up after {time.monotonic() - began:.1f} s: {host.read('systemctl --version | head -n 1')}", flush=True)
        scenarios = Scenarios(host, stacks, arguments.package, arguments.next_package)
        failed = run(scenarios, with_needs(chosen))
    finally:
        if arguments.keep:
            print(f"systemd: kept: docker exec -it {host.name} bash; docker rm -fv {host.name}; docker volume rm {host.volume}")
        else:
            stacks.remove()
            host.remove()
    seconds = time.monotonic() - began
    if failed:
        print(f"systemd: FAILED after {seconds:.0f} s: {', '.join(failed)}", file=sys.stderr)
        return 1
    print(f"systemd: all is well after {seconds:.0f} s")
    return 0


def run(scenarios, names):
    """Runs them in order and answers those that failed."""
    failed = []
    for name in names:
        scenario, began = getattr(scenarios, name), time.monotonic()
        what = scenario.__doc__.splitlines()[0]
        since = scenarios.host.now()
        try:
            figures = scenario()
            scenarios.tidy()
        except Exception as error:
            said = str(error) if isinstance(error, Failure) else traceback.format_exc()
            print(f"FAILED {time.monotonic() - began:6.1f} s  {name}: {what}\n{said}\n{journal(scenarios.host, since)}", flush=True)
            failed.append(name)
            if name in FIRST:
                break
            scenarios.tidy()
            continue
        print(f"passed {time.monotonic() - began:6.1f} s  {name}: {what}" + (f"\n                  {figures}" if figures else ""), flush=True)
    return failed


def journal(host, since):
    """What the host says of the service."""
    try:
        lines = host.read(f"journalctl --quiet --no-hostname --since={since} --unit={SERVICE} --lines={JOURNAL_LINES}")
        return "\n".join(f"    {line}" for line in lines.splitlines())
    except Failure as failure:
        return f"    no journal: {failure}"


if __name__ == "__main__":
    sys.exit(main())
