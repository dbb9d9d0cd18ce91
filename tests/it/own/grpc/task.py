# A task that answers gRPC at $PORT. What happens to it stands in $SAYS, in order, in files by its name ($TASK): a line each in NAME.events,
# a byte for each call in NAME.calls. When it is told to stop, one of an odd slot ends as a good server does, with GOAWAY and a moment for
# its streams; one of an even slot goes on until it is killed.
import os, signal, threading, time
from concurrent import futures
import grpc

name = os.environ["TASK"]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

def opened(what):
    return os.open(f"{os.environ['SAYS']}/{name}.{what}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

events, calls = opened("events"), opened("calls")
told = threading.Event()

def say(*words):
    os.write(events, (" ".join(words) + "\n").encode())

def begin():
    os.write(calls, b".")
    if told.is_set():
        say("late")

def unary(request, context):
    begin()
    return name.encode()

def hold(request, context):
    begin()
    context.add_callback(lambda: say("ended"))
    yield name.encode()
    while context.is_active():
        time.sleep(0.02)

handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary), "Hold": grpc.unary_stream_rpc_method_handler(hold)}
server = grpc.server(futures.ThreadPoolExecutor(40))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
server.add_insecure_port(f"0.0.0.0:{os.environ['PORT']}")
server.start()
signal.sigwait({signal.SIGTERM})
say("told")
told.set()
if int(os.environ["SLOT"]) % 2 == 1:
    server.stop(0.2).wait()
else:
    signal.pause()
