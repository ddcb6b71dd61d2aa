"""A receiver of callbacks. pip install standardwebhooks; CALLBACK_KEY=whsec_… python3 receiver.py"""

import hmac
import os
import re
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl

from standardwebhooks import Webhook

FOLDER = Path("callbacks")  # <id> is a callback as it came, <id>.done says that it is handled
MAX_BODY = 32 << 20  # a result of 8 MiB is up to three times as long when it is encoded
MIN_KEY = 38  # whsec_ and 24 bytes: an empty key would verify what anybody signs
TASK_ID = re.compile(r"[0-9a-f-]{36}")
VERBS = {"COMPLETE": "is done", "FAILED": "has failed", "TIMEOUT": "took too long"}


def finish(task, status, pairs):
    """Where your own work goes. After a crash it can run again for the same task."""
    lines = [f"task {task} {VERBS[status]}"] + [f"{name}={value}" for name, value in pairs]
    sys.stdout.buffer.write(("\n".join(lines) + "\n").encode(errors="replace"))
    sys.stdout.buffer.flush()


def verified(hook, body, headers):
    """Whether the body is signed with our key, less than five minutes ago.

    Not with hook.verify: it wants a body that is JSON, and callbacks are forms.
    """
    try:
        at = int(headers["webhook-timestamp"])
        if abs(time.time() - at) > 300:
            return False
        signed = hook.sign(headers["webhook-id"], datetime.fromtimestamp(at, timezone.utc), body.decode())
    except (TypeError, ValueError, OverflowError):  # no such header, no number, no text
        return False
    given = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(one.encode(), signed.encode()) for one in given)


def keep(task, record):
    """Stores a callback, on disk before it returns; whether it is the first with its ID."""
    with tempfile.NamedTemporaryFile(dir=FOLDER, prefix=".tmp-") as tmp:
        tmp.write(record)
        tmp.flush()
        os.fsync(tmp.fileno())
        try:
            os.link(tmp.name, FOLDER / task)  # fails if it is there
        except FileExistsError:
            return False
    return True


def handle(task):
    """Finishes a stored task, unless that has been done."""
    done = FOLDER / f"{task}.done"
    if done.exists():
        return
    status, _, body = (FOLDER / task).read_bytes().partition(b"\n")
    finish(task, status.decode(), parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
    done.touch()


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # of a sender that sends nothing
    hook = None

    def do_POST(self):
        size = self.headers.get("content-length", "")
        if not (size.isascii() and size.isdecimal()) or int(size) > MAX_BODY:
            self.close_connection = True  # what it sends is not read
            return self.answer(413)
        body = self.rfile.read(int(size))
        task, status = self.headers.get("webhook-id", ""), self.headers.get("x-beam-task-status")
        if not verified(self.hook, body, self.headers):
            return self.answer(401)
        if not TASK_ID.fullmatch(task) or status not in VERBS:
            return self.answer(400)
        try:
            first = keep(task, status.encode() + b"\n" + body)
        except OSError as err:
            self.log_error("%s", err)
            return self.answer(500)  # it comes again
        self.answer(204)  # a repeat too: we have it
        if first:
            threading.Thread(target=handle, args=(task,)).start()

    def answer(self, code):
        self.send_response(code)
        if code != 204:
            self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    key = os.environ.get("CALLBACK_KEY", "")
    if len(key) < MIN_KEY:
        sys.exit("CALLBACK_KEY is not a whsec_ key")
    Receiver.hook = Webhook(key)
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    for file in FOLDER.iterdir():  # what a crash left
        if TASK_ID.fullmatch(file.name):
            handle(file.name)
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver).serve_forever()
