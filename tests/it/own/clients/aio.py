"""The life of each thing of a swarm, by aiodocker: `aio.py SOCKET PROGRAM`, as `docker_py.py`."""

import asyncio
import sys

import aiodocker

socket, program = sys.argv[1:]
IMAGE = "nginx:latest"


async def wait(what, is_so):
    for _ in range(1200):
        found = await is_so()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError(what)


async def main():
    client = aiodocker.Docker(url=f"unix://{socket}")
    await client.swarm.init(advertise_addr="127.0.0.1", listen_addr="127.0.0.1:2377")
    swarm = await client.swarm.inspect()
    assert swarm["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    print("swarm")

    [node] = await client.nodes.list(filters={"role": "manager"})
    spec = {**node["Spec"], "Labels": {"zone": "a"}}
    await client.nodes.update(node_id=node["ID"], version=node["Version"]["Index"], spec=spec)
    assert (await client.nodes.inspect(node_id=node["ID"]))["Spec"]["Labels"] == {"zone": "a"}
    print("node")

    network = await client.networks.create({"Name": "back", "Driver": "overlay", "Attachable": True})
    assert (await network.show())["Driver"] == "overlay"
    config = await client.configs.create(name="conf", data="some text")
    secret = await client.secrets.create(name="pass", data="hidden")
    assert (await client.configs.inspect(config["ID"]))["Spec"]["Name"] == "conf"
    assert (await client.secrets.inspect(secret["ID"]))["Spec"]["Name"] == "pass"
    print("network, config and secret")

    template = {
        "ContainerSpec": {
            "Image": IMAGE,
            "Env": {"A": "B"},
            "Configs": [{"ConfigID": config["ID"], "ConfigName": "conf", "File": {"Name": "/conf", "UID": "0", "GID": "0", "Mode": 292}}],
            "Secrets": [{"SecretID": secret["ID"], "SecretName": "pass", "File": {"Name": "pass", "UID": "0", "GID": "0", "Mode": 292}}],
        },
        "RestartPolicy": {"Condition": "on-failure", "Delay": 100_000_000},
    }
    made = await client.services.create(
        task_template=template,
        name="web",
        labels={"x": "y"},
        mode={"Replicated": {"Replicas": 2}},
        update_config={"Parallelism": 1, "Monitor": 100_000_000},
        endpoint_spec={"Ports": [{"TargetPort": 80, "PublishedPort": 8070}]},
        networks=["back"],
    )

    async def n_running(service, n):
        tasks = await client.tasks.list(filters={"service": service, "desired-state": "running"})
        return [task["Status"]["State"] for task in tasks].count("running") == n

    await wait("two tasks", lambda: n_running("web", 2))
    web = await client.services.inspect(made["ID"])
    assert web["Endpoint"]["Ports"][0]["PublishedPort"] == 8070
    assert [found["ID"] for found in await client.services.list(filters={"label": "x=y"})] == [made["ID"]]
    await client.services.update(made["ID"], web["Version"]["Index"], image="nginx:latest@sha256:" + "0" * 64)
    web = await client.services.inspect(made["ID"])
    assert web["Spec"]["Mode"] == {"Replicated": {"Replicas": 2}}
    await client.services.update(made["ID"], web["Version"]["Index"], rollback=True)
    await wait("the rollback", lambda: n_running("web", 2))
    tasks = await client.tasks.list(filters={"service": "web", "desired-state": "running"})
    assert (await client.tasks.inspect(tasks[0]["ID"]))["ServiceID"] == made["ID"]
    assert any("listening" in line for line in await client.services.logs("web", stdout=True, stderr=True))
    print("service")

    mode = {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 3}}
    template = {"ContainerSpec": {"Image": IMAGE, "Command": program.split()}}
    await client.services.create(task_template=template, name="job", mode=mode)

    async def is_done():
        tasks = await client.tasks.list(filters={"service": "job"})
        return [task["Status"]["State"] for task in tasks].count("complete") == 3

    await wait("the job's end", is_done)
    print("job")

    for service in ["web", "job"]:
        assert await client.services.delete(service)

    async def is_gone():
        try:
            return await network.delete()
        except aiodocker.DockerError as error:
            if "in use" not in error.message:
                raise
            return False

    await wait("the network's end", is_gone)
    assert await client.configs.delete("conf") and await client.secrets.delete("pass")
    assert await client.services.list() == []
    await client.swarm.leave(force=True)
    await client.close()
    print("end")


asyncio.run(main())
