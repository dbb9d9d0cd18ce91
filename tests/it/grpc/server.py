# A server of gRPC that knows no messages but bytes: server.py NAME [CERTIFICATE KEY]. Says its port, and ends with its standard input, gracefully.
import sys, threading, time
from concurrent import futures
import grpc

name = sys.argv[1].encode()

def unary(request, context):
    context.set_trailing_metadata((("who", name.decode()), ("got", str(len(request)))))
    return name + b" " + request

def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: " + request.decode())

def stream(request, context):
    for i in range(int(request)):
        yield b"%s %d" % (name, i)

def large(request, context):
    for _ in range(int(request)):
        yield b"x" * 100_000

def chat(requests, context):
    for request in requests:
        yield name + b" " + request

def collect(requests, context):
    return b"%d" % sum(len(request) for request in requests)

cancelled = threading.Event()

def wait(request, context):
    context.add_callback(cancelled.set)
    yield name
    while context.is_active():
        time.sleep(0.01)

def was_cancelled(request, context):
    return b"%d" % cancelled.wait(10)

handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Stream": grpc.unary_stream_rpc_method_handler(stream),
    "Large": grpc.unary_stream_rpc_method_handler(large),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Wait": grpc.unary_stream_rpc_method_handler(wait),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
}
server = grpc.server(futures.ThreadPoolExecutor(40))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
if len(sys.argv) > 2:
    certificate, key = (open(path, "rb").read() for path in sys.argv[2:4])
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
else:
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(30).wait()
