"""Requests by TLS, each on a connection of its own and others on one that is kept, until its input ends. It says when they have begun, and
at the end what came of them.

    load.py CA HOST PORT
"""
import http.client
import json
import socket
import ssl
import sys
import threading
import time

CA, HOST, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = ssl.create_default_context(cafile=CA)
stopping = threading.Event()
lock = threading.Lock()
said = {"new": 0, "kept": 0, "kept_connections": 0, "away": 0, "failed": []}


def connect():
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", PORT), timeout=10), server_hostname=HOST)
    connection = http.client.HTTPConnection(HOST)
    connection.sock = tls
    return connection


def ask(connection):
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError("status %d" % answer.status)
    return answer.will_close


def load(what, keeps):
    connection = None
    while not stopping.is_set():
        try:
            if connection is None:
                connection = connect()
                with lock:
                    said["kept_connections"] += keeps
            if ask(connection) or not keeps:
                connection.close()
                connection = None
            with lock:
                said[what] += 1
        except ConnectionRefusedError:
            # Nobody listens, which no client takes for an answer.
            connection = None
            with lock:
                said["away"] += 1
        except Exception as error:
            connection = None
            with lock:
                said["failed"].append("%s: %r" % (what, error))
        time.sleep(0.01)


threads = [threading.Thread(target=load, args=args) for args in [("new", 0), ("new", 0), ("kept", 1)]]
for thread in threads:
    thread.start()
while not (said["new"] and said["kept"] or said["failed"]):
    time.sleep(0.01)
print("begun", flush=True)
sys.stdin.read()
stopping.set()
for thread in threads:
    thread.join()
print(json.dumps(said))
