"""The faults behind tests/chaos/run. Standard library only."""

import argparse
import random
import shutil
import signal
import sys
import time
import traceback

from check import final_check
from engine import OwnEngine
from scene import Scene
from waiting import Failure

LONG_ROUNDS = 200
SHORT_ROUNDS = 4
# The other faults take longer and have fewer ways to strike.
ROUNDS_SHARE = 10
# A check of everything after so many kills, so that one that did harm is found near it.
KILLS_BETWEEN_CHECKS = 20
# Where a kill strikes: the moments that the scene tells of, in no order, and any other time.
AIMS = ("fetch", "begins", "create", "start", "stop", "rename", "remove", "succeeded", "queued", "accepted", "interrupted")
AIM_LIMIT_SECONDS = 6
DAY_SECONDS = 86400
FAULTS = ("kill", "remote", "clock", "docker", "disk", "reboot")
# Of the branches that end a fault with a bad commit, so many get a good one.
GOOD_TIPS_SHARE = 0.7


class Chaos:
    """The scene, and what is done to it."""

    def __init__(self, scene, arguments):
        self.scene, self.arguments = scene, arguments
        self.random = random.Random(f"{scene.seed} chaos")

    def run(self, faults):
        self.step("first deployments")
        for stack in self.scene.stacks:
            stack.push("good")
        self.scene.daemon.start()
        self.scene.calm_down()
        self.check()
        for fault in faults:
            rounds = self.arguments.rounds if fault == "kill" else max(1, self.arguments.rounds // ROUNDS_SHARE)
            getattr(self, fault)(rounds)
        self.scene.count()

    def step(self, what):
        print(f"chaos: {time.strftime('%H:%M:%S')} {what}", flush=True)

    def check(self):
        """Waits for calm, and looks at everything."""
        self.scene.calm_down()
        final_check(self.scene)

    def end_round(self, lift=None, good_share=GOOD_TIPS_SHARE):
        """The last commits are pushed while the fault is still there."""
        self.scene.hold()
        self.scene.push_last(self.random, good_share)
        if lift:
            lift()

    # ---- Faults ----

    def kill(self, rounds):
        """kill -9 at any moment, and at those that matter."""
        for first in range(0, rounds, KILLS_BETWEEN_CHECKS):
            count = min(KILLS_BETWEEN_CHECKS, rounds - first)
            self.step(f"kill -9: rounds {first + 1} to {first + count} of {rounds}")
            self.scene.go()
            for _ in range(count):
                self.strike()
                self.scene.daemon.kill_9()
                time.sleep(self.random.choice((0, 0, 0.5)))
                self.scene.daemon.spawn()
            self.end_round()
            self.strike()
            self.scene.daemon.kill_9()
            self.scene.daemon.start()
            self.check()

    def strike(self):
        """Waits for the moment of the next kill."""
        aim = self.random.choice((*AIMS, "decrypted", "start-up", "any", "any", "any"))
        if aim == "start-up":
            time.sleep(self.random.uniform(0, 0.4))
        elif aim == "decrypted":
            self.scene.wait_for_plain_text(AIM_LIMIT_SECONDS)
        elif aim == "any":
            time.sleep(self.random.uniform(0.2, 6))
        else:
            self.scene.moments.wait_for(aim, AIM_LIMIT_SECONDS)
            time.sleep(self.random.choice((0, self.random.uniform(0, 0.3))))

    def remote(self, rounds):
        """The remote hangs in mid-transfer, closes in it, drips, or is not there."""
        remote = self.scene.remote
        for number in range(rounds):
            fault = self.pick(("hang", "cut", "drip", "away"), number)
            seconds = self.long(8, 90) if fault == "hang" else self.long(4, 15)
            self.step(f"the remote: {fault} for {seconds:.0f} s")
            self.scene.go()
            if fault == "away":
                remote.close()
            else:
                remote.misbehave(fault)
            time.sleep(seconds)
            self.end_round(remote.open if fault == "away" else remote.behave)
            self.check()

    def clock(self, rounds):
        """The clock is stepped, to and fro."""
        self.scene.timeless_only = True
        steps = (3600, -3600, 400 * DAY_SECONDS, -20 * 365 * DAY_SECONDS, 90, -90)
        for number in range(rounds):
            offsets = [self.pick(steps, 2 * number), self.pick(steps, 2 * number + 1)]
            self.step(f"the clock: steps to {offsets[0]:+} s, then to {offsets[1]:+} s, then back")
            self.scene.go()
            for offset in (*offsets, 0):
                self.scene.clock.set(offset)
                time.sleep(self.long(2, 8))
            self.end_round()
            self.check()
            self.check_durations()
        self.scene.timeless_only = False

    def check_durations(self):
        for row in self.scene.daemon.get("/api/deployments?limit=500"):
            if row["duration_seconds"] is not None and row["duration_seconds"] < 0:
                raise Failure(f"deployment {row['id']} took {row['duration_seconds']} s")

    def docker(self, rounds):
        """Docker's connections are cut, hang or are refused; it is restarted, and it crashes."""
        ways = ["cut", "hang", "refuse"] + (["restart", "crash"] if self.has_own_engine() else [])
        for number in range(rounds):
            way = self.pick(ways, number)
            self.step(f"docker: {way}")
            self.scene.go()
            self.scene.moments.wait_for(self.random.choice(("create", "stop", "start", "begins")), AIM_LIMIT_SECONDS)
            lift = getattr(self, f"docker_{way}")()
            time.sleep(self.long(3, 20))
            self.end_round(lift)
            self.check()

    def docker_cut(self):
        self.scene.proxy.cut()

    def docker_hang(self):
        self.scene.proxy.hang()
        return self.scene.proxy.flow

    def docker_refuse(self):
        self.scene.proxy.close()
        return self.scene.proxy.open

    def docker_restart(self):
        self.scene.engine.stop()
        return self.scene.engine.start

    def docker_crash(self):
        self.scene.engine.kill()
        return self.scene.engine.start

    def disk(self, rounds):
        """The data disk fills up, and has space again."""
        if not self.scene.disk.is_mounted:
            self.step("the disk: not tried, because nothing can be mounted here")
            return
        for number in range(rounds):
            also_kill = number % 2 == 1
            self.step(f"the disk is full{', and kill -9' if also_kill else ''}")
            self.scene.may_refuse = True
            self.scene.go()
            self.strike()
            self.scene.disk.fill()
            time.sleep(self.long(4, 15))
            if also_kill:
                self.scene.daemon.kill_9()
            self.end_round(self.scene.disk.free)
            if self.scene.daemon.process.poll() is not None:
                self.scene.daemon.start()
            self.scene.may_refuse = False
            self.check()

    def reboot(self, rounds):
        """Power is cut: the runtime folder is empty afterwards, Docker comes late, and the network after it."""
        if not self.has_own_engine():
            self.step("reboot: not tried, because the engine is shared")
            return
        for number in range(rounds):
            self.step(f"reboot {number + 1} of {rounds}")
            self.scene.go()
            self.strike()
            self.scene.engine.kill()
            self.scene.daemon.kill_9()
            self.end_round(self.scene.remote.close, good_share=1)
            self.empty_runtime()
            began = time.monotonic()
            self.scene.daemon.start()
            time.sleep(self.long(3, 60))
            self.scene.engine.start()
            time.sleep(self.long(2, 20))
            self.scene.remote.open()
            self.scene.calm_down()
            self.check_messages(began)
            self.check()

    # ---- Helpers ----

    def empty_runtime(self):
        for entry in self.scene.runtime.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def check_messages(self, began):
        """The commits are good: at most one message tells of a failure, and one that it is well."""
        for (repository, event), count in self.scene.messages.since(began).items():
            if count > 1:
                raise Failure(f"{repository}: {count} messages `{event}` about one reboot")

    def has_own_engine(self):
        return isinstance(self.scene.engine, OwnEngine)

    def pick(self, ways, number):
        """Each in its turn, beginning anywhere, so that a few rounds try most of them."""
        return ways[(number + self.scene.seed) % len(ways)]

    def long(self, short_seconds, long_seconds):
        """How long a fault lasts."""
        most = short_seconds if self.arguments.short else long_seconds
        return self.random.uniform(most / 2, most)


def main():
    parser = argparse.ArgumentParser(prog="tests/chaos/run", description=__doc__)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--engine", choices=("own", "shared"))
    parser.add_argument("--binary", required=True)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (SHORT_ROUNDS if arguments.short else LONG_ROUNDS)
    arguments.engine = arguments.engine or ("own" if OwnEngine.can_run() else "shared")
    faults = arguments.only.split(",")
    if unknown := set(faults) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))} (known: {', '.join(FAULTS)})")

    # Whoever ends it at its limit gets the mounts, engines and containers removed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print(f"chaos: seed {arguments.seed}, {arguments.engine} engine", flush=True)
    scene, failed, began = Scene(arguments), None, time.monotonic()
    try:
        Chaos(scene, arguments).run(faults)
    except Failure as failure:
        failed = str(failure)
    except Exception:
        failed = traceback.format_exc()
    finally:
        keep = arguments.keep or failed is not None
        scene.leave(keep)
    if keep:
        print(f"chaos: kept in {scene.folder}", flush=True)
    if failed is None:
        print(f"chaos: all is well after {time.monotonic() - began:.0f} s: {scene.figures}", flush=True)
        return 0
    print(f"chaos: FAILED with --seed {arguments.seed}:\n{failed}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
