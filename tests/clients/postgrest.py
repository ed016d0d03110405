"""As much of PostgREST as the clients need: it calls functions of schema public, with nothing else on the search_path, as the
role that the caller names, with arguments taken out of a JSON body and typed as the catalogue types them.

As a script it serves that over HTTP to a command, its third argument and those after it, which finds in its environment the
address as SUPABASE_URL."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import psycopg2
from common import connect, same


def call(role, name, arguments, limit=None):
    """The rows that a function returns, as JSON has them."""
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(jsonb_object_agg(u.name, format_type(u.type, NULL)), '{}')"
            " FROM pg_proc p, unnest(p.proargnames, p.proargtypes::oid[]) AS u(name, type)"
            " WHERE p.oid = %s::regproc AND u.name = ANY (%s)",
            (f"public.{name}", list(arguments)),
        )
        typed = cursor.fetchone()[0]
        same(sorted(typed), sorted(arguments))
        columns = ", ".join(f'"{name}" {kind}' for name, kind in typed.items())
        given = ", ".join(f'"{name}" := body."{name}"' for name in typed)
        cursor.execute(f'SET LOCAL search_path = public; SET LOCAL ROLE "{role}"; SET TRANSACTION READ ONLY')
        # The types were named while extensions was on the path.
        columns = columns.replace(" vector", " extensions.vector")
        cursor.execute(
            f"SELECT coalesce(json_agg(r), '[]') FROM (SELECT call.* FROM json_to_record(%s::json) AS body({columns}),"
            f' LATERAL public."{name}"({given}) AS call LIMIT %s) AS r',
            (json.dumps(arguments), limit),
        )
        return cursor.fetchone()[0]


def role_of(token):
    """The role that a JSON web token claims; its signature is not looked at."""
    claims = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["role"]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = urllib.parse.urlsplit(self.path)
        limit = urllib.parse.parse_qs(asked.query).get("limit", [None])[0]
        role = role_of(self.headers["Authorization"].removeprefix("Bearer "))
        arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.answer(200, call(role, asked.path.removeprefix("/rest/v1/rpc/"), arguments, limit))
        except psycopg2.Error as error:
            status = {"42501": 401 if role == "anon" else 403, "42883": 404}.get(error.pgcode, 400)
            said = error.diag
            told = {"message": said.message_primary, "details": said.message_detail, "hint": said.message_hint}
            self.answer(status, {"code": error.pgcode, **told})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**os.environ, "SUPABASE_URL": f"http://127.0.0.1:{server.server_port}"}
        status = subprocess.run(sys.argv[3:], env=environment, check=False).returncode
        server.shutdown()
    sys.exit(status)
