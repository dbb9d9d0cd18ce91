"""The life of each thing of a swarm, by docker-py: `docker_py.py SOCKET PROGRAM`, where PROGRAM says its hostname and ends.

Prints what was found as it should be, a line each; ends with an exception at the first that was not.
"""

import sys
import time

import docker
from docker.types import (
    ConfigReference, EndpointSpec, NetworkAttachmentConfig, Resources, RestartPolicy, RollbackConfig, SecretReference, ServiceMode,
    UpdateConfig,
)

socket, program = sys.argv[1:]
client = docker.DockerClient(base_url=f"unix://{socket}")
IMAGE = "nginx:latest"


def wait(what, is_so):
    for _ in range(1200):
        found = is_so()
        if found:
            return found
        time.sleep(0.05)
    raise TimeoutError(what)


def states(service, of=None):
    return [task["Status"]["State"] for task in service.tasks(filters=of)]


def n_running(service):
    return states(service, {"desired-state": "running"}).count("running")


assert client.ping()
client.swarm.init(advertise_addr="127.0.0.1")
client.swarm.reload()
assert client.swarm.version > 0 and client.swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
client.swarm.update(labels={"owner": "tests"})
client.swarm.reload()
assert client.swarm.attrs["Spec"]["Labels"] == {"owner": "tests"}
print("swarm")

[node] = client.nodes.list(filters={"role": "manager"})
spec = node.attrs["Spec"]
node.update({**spec, "Labels": {"zone": "a"}, "Availability": "active", "Role": "manager"})
assert client.nodes.get(node.id).attrs["Spec"]["Labels"] == {"zone": "a"}
print("node")

network = client.networks.create("back", driver="overlay", attachable=True, labels={"a": "b"}, scope="swarm")
assert [found.name for found in client.networks.list(names=["back"])] == ["back"]
network.reload()
assert network.attrs["Driver"] == "overlay" and network.attrs["Attachable"] and network.attrs["Labels"] == {"a": "b"}
print("network")

config = client.configs.create(name="conf", data=b"some text", labels={"c": "d"})
secret = client.secrets.create(name="pass", data=b"hidden", labels={})
assert client.configs.get(config.id).name == "conf" and client.secrets.get(secret.id).name == "pass"
assert [found.name for found in client.secrets.list(filters={"names": ["pass"]})] == ["pass"]
print("config and secret")

options = dict(
    name="web",
    env=["A=B"],
    labels={"x": "y"},
    container_labels={"in": "side"},
    networks=[NetworkAttachmentConfig("back", aliases=["alias"])],
    configs=[ConfigReference(config.id, "conf", filename="/etc/conf")],
    secrets=[SecretReference(secret.id, "pass")],
    mode=ServiceMode("replicated", replicas=2),
    restart_policy=RestartPolicy(condition="on-failure", delay=100_000_000),
    update_config=UpdateConfig(parallelism=1, delay=0, monitor=100_000_000, order="stop-first", failure_action="pause"),
    rollback_config=RollbackConfig(parallelism=0, monitor=100_000_000),
    resources=Resources(cpu_limit=1_000_000_000, mem_limit=512 << 20),
    endpoint_spec=EndpointSpec(ports={8070: 80}),
    stop_grace_period=1_000_000_000,
    constraints=["node.labels.zone == a"],
)
web = client.services.create(IMAGE, **options)
wait("two tasks", lambda: n_running(web) == 2)
web.reload()
assert web.attrs["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
assert web.attrs["Endpoint"]["Ports"][0]["PublishedPort"] == 8070
assert [found.name for found in client.services.list(filters={"label": "x=y"})] == ["web"]
assert [found.attrs["ServiceStatus"]["RunningTasks"] for found in client.services.list(status=True)] == [2]
assert web.scale(3) == {"Warnings": None}
wait("three tasks", lambda: n_running(web) == 3)
web.reload()
web.update(env=["A=C"], fetch_current_spec=True)
wait("the update", lambda: client.services.get("web").attrs.get("UpdateStatus", {}).get("State") == "completed")
web.reload()
template = web.attrs["Spec"]["TaskTemplate"]
assert template["ContainerSpec"]["Env"] == ["A=C"] and web.attrs["Spec"]["Mode"] == {"Replicated": {"Replicas": 3}}
web.force_update()
wait("another update", lambda: n_running(web) == 3)
assert b"listening" in b"".join(web.logs(stdout=True, stderr=True))
print("service")

everywhere = client.services.create(IMAGE, name="everywhere", mode=ServiceMode("global"))
wait("its task", lambda: n_running(everywhere) == 1)
everywhere.reload()
assert everywhere.attrs["Spec"]["Mode"] == {"Global": {}}
print("global service")

for mode, n in [(ServiceMode("replicated-job", replicas=3, concurrency=1), 3), (ServiceMode("global-job"), 1)]:
    job = client.services.create(IMAGE, command=program.split(), name=f"job-{mode.mode.lower()}", mode=mode)
    wait("the job's end", lambda: states(job).count("complete") == n)
    job.reload()
    assert job.attrs["JobStatus"]["JobIteration"] == {}, job.attrs
    job.remove()
print("job")

events = client.events(since=0, until=int(time.time()) + 1, decode=True)
kinds = {event["Type"] for event in events}
assert {"service", "network", "config", "secret", "node"} <= kinds and "task" not in kinds, kinds
print("events")

for service in [web, everywhere]:
    service.remove()
try:
    client.services.get("web")
    raise AssertionError("it is still there")
except docker.errors.NotFound:
    pass


def gone(thing):
    try:
        thing.remove()
        return True
    except docker.errors.APIError as error:
        # Docker's tasks take their time, too.
        if "in use" not in str(error):
            raise
        return False


wait("the network's end", lambda: gone(network))
config.remove()
secret.remove()
assert not client.configs.list() and not client.secrets.list() and not client.services.list()
client.swarm.leave(force=True)
print("end")
