"""A predictor of a few lines, for faults that a real one does not show on request.

`python stand_in.py PORT NAME` answers like an OpenAI server. A prompt tells it what to do: "slow N"
waits N seconds, "nonsense" answers no JSON, "nothing" an answer without content, "error" answers
500, "refuse" answers 400, "close" ends a stream in the middle, "empty" sends nothing and closes.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, NAME = int(sys.argv[1]), sys.argv[2]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(200, {"status": "ok"})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word, _, number = body["prompt"].partition(" ")
        if word == "slow":
            time.sleep(float(number))
        if word == "nonsense":
            return self.send(200, b"<html>nonsense</html>")
        if word == "nothing" and not body.get("stream"):
            return self.send(200, b"[]")
        if word in ("error", "refuse"):
            return self.reply(500 if word == "error" else 400, {"error": {"message": NAME}})
        if word == "empty":
            return None
        if body.get("stream"):
            return self.stream(word)
        return self.reply(200, completion(f"{NAME} {os.getpid()}"))

    def stream(self, word):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in ("one", "two") if word != "nothing" else ():
            self.wfile.write(f"data: {json.dumps(completion(piece))}\n\n".encode())
            self.wfile.flush()
            if word == "close":
                return
            if word == "hold":
                time.sleep(3)
        self.wfile.write(b"data: [DONE]\n\n")

    def reply(self, status, content):
        self.send(status, json.dumps(content).encode())

    def send(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        """Says nothing."""


def completion(text):
    return {"model": NAME, "choices": [{"index": 0, "text": text, "finish_reason": None}]}


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    Server(("127.0.0.1", PORT), Handler).serve_forever()
