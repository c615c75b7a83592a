"""An S3 server on loopback (moto's) behind a proxy that counts what is read and injects faults into it."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from moto.server import ThreadedMotoServer

#: Gets (object key, number of the request for it, body) and returns (status, body, declared length).
Fault = Callable[[str, int, bytes], tuple[int, bytes, int]]

#: Gets (object key, number of the request for it), and returns the status to refuse a write with, 200 to let it pass.
WriteFault = Callable[[str, int], int]


def no_fault(key: str, number: int, body: bytes) -> tuple[int, bytes, int]:
    return 200, body, len(body)


class FlakyS3:
    """The faults and latencies (seconds a GET, seconds a PUT or POST) may be changed at any time; ``served`` counts
    body bytes a key."""

    def __init__(self, port: int, upstream: int) -> None:
        self.endpoint, self.upstream = f"http://127.0.0.1:{port}", upstream
        self.fault: Fault = no_fault
        self.write_fault: WriteFault | None = None
        self.latency = 0.0
        self.write_latency = 0.0
        self.requests: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs in its environment to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def upload(self, folder: Path, bucket: str) -> str:
        """Create the bucket, copy all files of ``folder`` into it, and return its URL."""
        self._direct("PUT", f"/{bucket}")
        for path in folder.rglob("*"):
            if path.is_file():
                self._direct("PUT", f"/{bucket}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{bucket}"

    def _direct(self, method: str, path: str, body: bytes = b"") -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        connection.request(method, path, body)
        assert connection.getresponse().status == 200
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    s3: FlakyS3

    def log_message(self, *_: object) -> None:
        pass

    def _forward(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command in ("PUT", "POST"):
            time.sleep(self.s3.write_latency)
            if self._refuse_write():
                return
        connection = http.client.HTTPConnection("127.0.0.1", self.s3.upstream)
        connection.request(self.command, self.path, sent, dict(self.headers))
        response = connection.getresponse()
        status, body = response.status, response.read()
        declared = int(response.headers.get("Content-Length", len(body)))
        connection.close()
        if self.command == "GET" and status in (200, 206):
            key = self.path.split("?")[0]
            with self.s3.lock:
                self.s3.requests[key] += 1
                number = self.s3.requests[key]
            time.sleep(self.s3.latency)
            injected, body, declared = self.s3.fault(key, number, body)
            status = status if injected == 200 else injected
            if status in (200, 206):
                with self.s3.lock:
                    self.s3.served[key] += len(body)
        self.send_response(status)
        for name, value in response.headers.items():
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(declared))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")
        if len(body) < declared:
            self.close_connection = True  # the body ends early, as when a connection breaks

    def _refuse_write(self) -> bool:
        key = self.path.split("?")[0]
        with self.s3.lock:
            self.s3.writes[key] += 1
            number = self.s3.writes[key]
        status = self.s3.write_fault(key, number) if self.s3.write_fault is not None else 200
        if status != 200:
            body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        return status != 200

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward


@contextmanager
def flaky_s3() -> Iterator[FlakyS3]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    handler = type("Handler", (_Handler,), {})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    proxy.daemon_threads = True
    handler.s3 = s3 = FlakyS3(proxy.server_address[1], moto.get_host_and_port()[1])
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()
