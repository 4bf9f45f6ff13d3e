"""Runs inside the host: a new connection for each request, by TCP and by the control socket, until its input ends. Then it
prints what came of them, as JSON."""

import json
import socket
import sys
import threading
import time

PORT, CONTROL_SOCKET = 8080, "/run/shiparr/shiparr.sock"
REQUEST = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ANSWER_LIMIT_SECONDS = 60
# New connections one after the other, without a host that does nothing else.
PAUSE_SECONDS = 0.002
THREADS_EACH = 2


class Way:
    """How to reach the daemon, and how often that went well."""

    def __init__(self, connect):
        self.connect = connect
        self.lock = threading.Lock()
        self.answered, self.longest_seconds, self.failures = 0, 0.0, []

    def knock(self):
        began, failure = time.monotonic(), None
        try:
            with self.connect() as connection:
                connection.settimeout(ANSWER_LIMIT_SECONDS)
                connection.sendall(REQUEST)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            if not answer.startswith(b"HTTP/1.1 200 "):
                failure = f"answered {answer[:100]!r}"
        except OSError as error:
            failure = repr(error)
        with self.lock:
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            if failure:
                self.failures.append(f"{failure} after {time.monotonic() - began:.3f} s")
            else:
                self.answered += 1

    def tell(self):
        return {"answered": self.answered, "failed": len(self.failures), "failures": self.failures[:3],
                "longest_seconds": round(self.longest_seconds, 3)}


def connect_tcp():
    return socket.create_connection(("127.0.0.1", PORT), timeout=ANSWER_LIMIT_SECONDS)


def connect_control():
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_LIMIT_SECONDS)
    connection.connect(CONTROL_SOCKET)
    return connection


def main():
    ways = {"tcp": Way(connect_tcp), "control": Way(connect_control)}
    is_over = threading.Event()

    def go_on(way):
        while not is_over.wait(PAUSE_SECONDS):
            way.knock()

    threads = [threading.Thread(target=go_on, args=(way,)) for way in ways.values() for _ in range(THREADS_EACH)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({name: way.tell() for name, way in ways.items()}))


main()
