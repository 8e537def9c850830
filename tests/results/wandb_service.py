"""A W&B service on this machine: as much of it as a run speaks to, and its outages."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Row = dict[str, Any]


class Service:
    """Keeps the runs of one entity: their rows by place, as they come by the file stream.

    A row's place is where its file stream says; a stream that comes again goes to the same
    places. Ids of deleted runs are refused.
    """

    def __init__(self) -> None:
        self.runs: dict[str, list[str]] = {}  # id -> lines of its history, by place
        self.summaries: dict[str, str] = {}
        self.streamed: list[tuple[str, int, int]] = []  # id, first place, lines: as they came
        self.configs: dict[str, str] = {}
        self.files: dict[str, list[str]] = {}  # id -> names of uploaded files
        self.views: list[dict[str, Any]] = []  # dashboards, as they came
        self.deleted: set[str] = set()
        self.drops = False  # connections are closed unanswered
        self.dropped = 0  # so many requests
        self.forgets_answers = 0  # so many file streams are kept, and not answered
        self.lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def start(self) -> None:
        """On the port that it had before, if any."""
        service = self

        class Handler(_Handler):
            of = service

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def stop(self) -> None:
        """Connections break off, and are refused from now on."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    @property
    def environment(self) -> dict[str, str]:
        """With it a process logs to this service, and to nothing else."""
        return {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.port}",
            "WANDB_API_KEY": "0123456789" * 4,
            "WANDB_ERROR_REPORTING": "false",
        }

    def rows(self, run: str) -> list[Row]:
        with self.lock:
            return [json.loads(line) for line in self.runs.get(run, [])]

    # what the service answers

    def query(self, text: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in text:
            return self._upsert(variables)
        if "upsertView" in text:
            self.views.append(variables)
            view = {"id": "w", "name": variables["name"]}
            return {"upsertView": {"view": view, "inserted": True}}
        if "RunResumeStatus" in text:
            return {"model": self._model(variables["name"])}
        if "createRunFiles" in text:
            return self._create_files(variables)
        if "serverInfo" in text:
            return {"serverInfo": {"features": []}}
        if "viewer" in text:
            return {"viewer": {"id": "v", "entity": "me", "flags": "{}", "username": "me",
                               "email": "", "admin": False, "teams": {"edges": []}}}  # fmt: skip
        return {}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"] or variables["id"]
        inserted = name not in self.runs
        self.runs.setdefault(name, [])
        if variables.get("config"):
            self.configs[name] = variables["config"]
        project = {"id": "p", "name": variables["project"] or "mdl", "entity": _ENTITY}
        bucket = {
            "id": name, "name": name, "displayName": variables["displayName"] or name,
            "description": None, "config": self.configs.get(name), "sweepName": None,
            "project": project, "historyLineCount": len(self.runs[name]),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _model(self, name: str) -> dict[str, Any]:
        bucket = None
        if (lines := self.runs.get(name)) is not None:
            bucket = {
                "id": name, "name": name, "displayName": name, "tags": [], "notes": None,
                "summaryMetrics": self.summaries.get(name, "{}"), "logLineCount": 0,
                "historyLineCount": len(lines), "eventsLineCount": 0,
                "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]",
                "config": self.configs.get(name, "{}"), "wandbConfig": json.dumps({"t": 1}),
            }  # fmt: skip
        return {"id": "p", "name": "mdl", "entity": _ENTITY, "bucket": bucket}

    def _create_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        base = f"http://127.0.0.1:{self.port}/upload/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{base}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def stream(self, run: str, content: dict[str, Any]) -> None:
        for name, part in (content.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                at, lines = part["offset"], part["content"]
                self.runs.setdefault(run, [])[at : at + len(lines)] = lines
                self.streamed.append((run, at, len(lines)))
            elif name == "wandb-summary.json":
                self.summaries[run] = part["content"][-1]


_ENTITY = {"id": "e", "name": "me"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        self.open.discard(request)
        super().close_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed meanwhile

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed, or dropped, leave connections behind."""


class _Handler(BaseHTTPRequestHandler):
    of: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.of.drops:
            return self._drop()
        with self.of.lock:
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                variables = asked.get("variables") or {}
                name = variables.get("name")
                if "upsertBucket" in asked["query"] and name in self.of.deleted:
                    said = f"run {name} was previously created and deleted; try a new run name"
                    return self._answer({"error": said}, 409)
                return self._answer({"data": self.of.query(asked["query"], variables)})
            if self.path.endswith("/file_stream"):
                self.of.stream(self.path.split("/")[-2], json.loads(body))
                if self.of.forgets_answers:
                    self.of.forgets_answers -= 1
                    return self._drop()
        return self._answer({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.of.drops:
            return self._drop()
        _, _, run, name = self.path.split("/", 3)
        with self.of.lock:
            self.of.files.setdefault(run, []).append(name)
        return self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _drop(self) -> None:
        self.of.dropped += 1
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""
