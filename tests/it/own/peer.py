"""A program that forms a cluster as RabbitMQ, Erlang's distribution and Spark do: it asks each task of its service who it
is, is told a hostname, and from then on knows that one by this name alone.

    peer.py SERVICE     on port 4369 it says its own name; on port 80, as JSON, whom it has reached by which address
"""
import http.server
import json
import os
import signal
import socket
import sys
import threading
import time

SERVICE = sys.argv[1]
ME = socket.gethostname()
met = {}


def say_name():
    server = socket.create_server(("0.0.0.0", 4369), backlog=100)
    while True:
        client, _ = server.accept()
        with client:
            client.sendall(ME.encode())


def ask_name(whom):
    with socket.create_connection((whom, 4369), timeout=5) as peer:
        return peer.getpeername()[0], peer.makefile().read()


def meet():
    while True:
        now = {}
        try:
            found = {info[4][0] for info in socket.getaddrinfo("tasks." + SERVICE, None, socket.AF_INET)}
            for address in found:
                _, name = ask_name(address)
                reached, again = ask_name(name)
                if again == name:
                    now[name] = reached
        except OSError as error:
            print(error, flush=True)
        met.clear()
        met.update(now)
        time.sleep(0.2)


class Shown(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"me": ME, "met": met}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
threading.Thread(target=say_name, daemon=True).start()
threading.Thread(target=meet, daemon=True).start()
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Shown).serve_forever()
