"""The script that people write first: it accepts a task with 202, runs it in a thread,
and posts the result to the callback URL. Tasks are only in memory.

    python3 script.py PORT ENDPOINT
"""

import http.client
import json
import sys
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, endpoint = int(sys.argv[1]), sys.argv[2]
workers = ThreadPoolExecutor(64)


def post(url, body):
    parts = urllib.parse.urlsplit(url)
    conn = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        conn.request("POST", parts.path, body, {"Content-Type": "application/json"})
        return conn.getresponse().read()
    finally:
        conn.close()


def run(body):
    post(json.loads(body)["callback_url"], post(endpoint, body))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        workers.submit(run, self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


Server(("127.0.0.1", port), Handler).serve_forever()
