"""The model server of the journeys: echoes, fails when told to, streams, and answers chats in OpenAI's form."""

import http.server
import json
import os

NAME = os.environ.get("NAME", "?")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/chat/completions":
            self.chat(body)
        elif "fail" in body:
            self.answer(json.dumps({"error": body["fail"]}).encode(), status=400)
        elif body.get("stream"):
            self.stream("text/event-stream", [f"data: {word}\n\n" for word in body["inputs"].split()])
        else:
            self.answer(json.dumps({"echo": body["inputs"], "name": NAME}).encode())

    def chat(self, body):
        words = body["messages"][-1]["content"].split()
        common = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        if body.get("stream"):
            parts = [self.chunk(common, {"content": word}, None) for word in words]
            self.stream("text/event-stream", [*parts, self.chunk(common, {}, "stop"), "data: [DONE]\n\n"])
            return
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(words), "completion_tokens": len(words), "total_tokens": 2 * len(words)}
        answer = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
        self.answer(json.dumps(answer).encode())

    @staticmethod
    def chunk(common, delta, reason):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({**common, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, kind, parts):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts:
            data = part.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
