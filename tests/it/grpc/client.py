# client.py SCENARIO TARGET: goes through a scenario by one channel, says what it saw, and "end".
import sys, queue, threading
from collections import Counter
import grpc

scenario, target = sys.argv[1:3]
channel = grpc.insecure_channel(target, options=[
    ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0)])
unary = channel.unary_unary("/t.T/Unary")
saying = threading.Lock()

def say(*words):
    with saying:
        print(*words, flush=True)

def shares():
    # Batches, so that many are under way at once.
    seen = Counter()
    for _ in range(100):
        calls = [unary.future(b"hi", timeout=60) for _ in range(100)]
        for call in calls:
            seen[call.result().split()[0].decode()] += 1
    for name, n in sorted(seen.items()):
        print(name, n)

def kinds():
    answer, call = unary.with_call(b"a" * 3_000_000, metadata=(("x-bin", b"\x00\xff"), ("x-text", "b c")), timeout=60)
    assert len(answer) == 3_000_002 and dict(call.trailing_metadata())["got"] == "3000000", call
    assert [m.split()[1] for m in channel.unary_stream("/t.T/Stream")(b"500", timeout=60)] == [b"%d" % i for i in range(500)]
    assert channel.stream_unary("/t.T/Collect")((b"x" * 10_000 for _ in range(300)), timeout=60) == b"3000000"
    # One message is only sent once the answer to the one before is here: neither side waits for the other's end.
    said = queue.Queue()
    answers = channel.stream_stream("/t.T/Chat")(iter(said.get, None), timeout=60)
    for i in range(200):
        said.put(b"%d" % i)
        assert next(answers).split()[1] == b"%d" % i
    said.put(None)
    assert list(answers) == []
    for method, request, expected in (("Fail", b"no", grpc.StatusCode.FAILED_PRECONDITION), ("Nothing", b"", grpc.StatusCode.UNIMPLEMENTED)):
        try:
            channel.unary_unary("/t.T/" + method)(request, timeout=60)
            raise SystemExit("no error")
        except grpc.RpcError as error:
            assert error.code() == expected, error
            assert method != "Fail" or error.details() == "as asked: no", error
    # What nobody reads does not grow here, and holds up nobody else.
    large = channel.unary_stream("/t.T/Large")(b"2000", timeout=120)
    for _ in range(100):
        unary(b"", timeout=60)
    assert sum(len(m) for m in large) == 200_000_000
    # Who is not waited for any more learns it.
    waiting = channel.unary_stream("/t.T/Wait")(b"", timeout=60)
    next(waiting)
    waiting.cancel()
    assert channel.unary_unary("/t.T/WasCancelled")(b"", timeout=60) == b"1"

def roll():
    # Streams to whoever there is, and calls all the while. Says who ends which stream.
    ended = queue.Queue()
    def hold():
        stream = channel.unary_stream("/t.T/Wait")(b"", timeout=300)
        name = next(stream).decode()
        ended.put(("at", name))
        try:
            for _ in stream:
                pass
            say("ended", name)
        except grpc.RpcError as error:
            say("ended", name, error.code().name)
    threads = [threading.Thread(target=hold, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in threads:
        print(*ended.get(timeout=60), flush=True)
    print("held", flush=True)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    n = 0
    while not stop.is_set():
        calls = [unary.future(b"hi", timeout=60) for _ in range(20)]
        n += sum(1 for call in calls if call.result())
    print("calls", n, flush=True)

def down():
    try:
        unary(b"", timeout=60)
    except grpc.RpcError as error:
        print(error.code().name)

{"shares": shares, "kinds": kinds, "roll": roll, "down": down}[scenario]()
print("end", flush=True)
