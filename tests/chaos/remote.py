"""The servers that the daemon talks to: a Git remote that can hang, and one that counts messages."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import git_backend


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """A daemon that is killed leaves in the middle of an answer."""


class Server:
    """An HTTP server on a port of its own that can be away for a while."""

    def __init__(self, handler):
        self.handler = handler
        self.port = 0
        self.server = None
        self.open()

    def open(self):
        self.server = Quiet(("127.0.0.1", self.port), self.handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        """Connections are refused."""
        self.server.shutdown()
        self.server.server_close()


class GitServer(Server):
    """`git http-backend` with a password. `fault`: None, "hang" (half of the answer, then nothing), "cut" (half of it,
    then the end) or "drip" (a few bytes at a time)."""

    DRIP_BYTES, DRIP_SECONDS = 16, 0.25

    def __init__(self, root, login, moment):
        self.root, self.moment = str(root), moment
        self.authorization = "Basic " + base64.b64encode(login.encode()).decode()
        self.fault = None
        self.released = threading.Event()
        remote = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                remote.answer(self)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        super().__init__(Handler)
        self.url = f"http://127.0.0.1:{self.port}"

    def misbehave(self, fault):
        self.released.clear()
        self.fault = fault

    def behave(self):
        self.fault = None
        self.released.set()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.headers.get("Authorization") != self.authorization:
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if b"want " in body:
            self.moment("fetch")
        fault = self.fault
        status, headers, content = git_backend.answer(request, body, self.root)
        request.send_response(status)
        for name, value in headers:
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault is None:
            request.wfile.write(content)
            return
        request.close_connection = True
        half = len(content) // 2
        if fault != "drip":
            request.wfile.write(content[:half])
        if fault == "hang":
            self.released.wait()
        for at in range(0, len(content), self.DRIP_BYTES) if fault == "drip" else ():
            request.wfile.write(content[at:at + self.DRIP_BYTES])
            if not self.released.is_set():
                time.sleep(self.DRIP_SECONDS)


class MessageServer(Server):
    """Where notifications go: `messages` are pairs of a monotonic time and the JSON that came."""

    def __init__(self, secret_path):
        self.messages = []
        messages = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == f"/{secret_path}":
                    messages.messages.append((time.monotonic(), json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(Handler)
        self.url = f"http://127.0.0.1:{self.port}"

    def since(self, began):
        """Counts of messages by (repository, event) since that time."""
        counts = {}
        for at, message in list(self.messages):
            if at >= began:
                key = (message["repository"], message["event"])
                counts[key] = counts.get(key, 0) + 1
        return counts
