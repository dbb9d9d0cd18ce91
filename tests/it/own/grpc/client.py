# client.py TARGET SAYS: calls by one channel all the time, a byte in SAYS/progress for each batch that was answered, and holds a stream for
# each line "hold" that it hears. Says who has it ("at NAME"), and what came of it: whether NAME had been told to stop by then. Ends with
# its input.
import os, sys, threading, time
import grpc

target, says = sys.argv[1:3]
channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])
unary, holding = channel.unary_unary("/t.T/Unary"), channel.unary_stream("/t.T/Hold")
progress = os.open(says + "/progress", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
saying, over = threading.Lock(), threading.Event()

def say(*words):
    with saying:
        print(*words, flush=True)

def hold():
    stream = holding(b"")
    name = next(stream).decode()
    say("at", name)
    try:
        for _ in stream:
            pass
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    # The task wrote it down before anything could come of it.
    was_told = "told" in open(f"{says}/{name}.events").read().split()
    if not over.is_set():
        say("ended", name, "told" if was_told else "early " + code)

def call():
    while not over.is_set():
        for one in [unary.future(b"", timeout=60) for _ in range(8)]:
            if error := one.exception():
                say("failed", error.code().name, error.details())
        os.write(progress, b".")
        time.sleep(0.01)

caller = threading.Thread(target=call)
caller.start()
for line in sys.stdin:
    threading.Thread(target=hold, daemon=True).start()
over.set()
caller.join()
channel.close()
say("end")
