// The life of each thing of a swarm, by dockerode: `dockerode.js SOCKET PROGRAM`, as `docker_py.py`.
const assert = require('node:assert');
const Docker = require('dockerode');

const [socketPath, program] = process.argv.slice(2);
const docker = new Docker({ socketPath });
const Image = 'nginx:latest';

async function wait(what, isSo) {
  for (let n = 0; n < 1200; n++) {
    const found = await isSo();
    if (found) return found;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error(`waited in vain for ${what}`);
}

async function nIn(service, state) {
  const tasks = await docker.listTasks({ filters: { service: [service] } });
  return tasks.filter((task) => task.Status.State === state).length;
}

async function main() {
  await docker.swarmInit({ ListenAddr: '127.0.0.1:2377', AdvertiseAddr: '127.0.0.1' });
  assert.match((await docker.swarmInspect()).JoinTokens.Worker, /^SWMTKN-1-/);
  console.log('swarm');

  const [node] = await docker.listNodes();
  await docker.getNode(node.ID).update({ version: node.Version.Index, ...node.Spec, Labels: { zone: 'a' } });
  assert.deepEqual((await docker.getNode(node.ID).inspect()).Spec.Labels, { zone: 'a' });
  console.log('node');

  const network = await docker.createNetwork({ Name: 'back', Driver: 'overlay', Attachable: true });
  assert.equal((await network.inspect()).Driver, 'overlay');
  const data = Buffer.from('some text').toString('base64');
  const config = await docker.createConfig({ Name: 'conf', Data: data });
  const secret = await docker.createSecret({ Name: 'pass', Data: data });
  assert.equal((await docker.getConfig(config.id ?? config.ID).inspect()).Spec.Data, data);
  assert.equal((await docker.getSecret(secret.id ?? secret.ID).inspect()).Spec.Name, 'pass');
  console.log('network, config and secret');

  const web = await docker.createService({
    Name: 'web',
    Labels: { x: 'y' },
    TaskTemplate: { ContainerSpec: { Image }, Networks: [{ Target: 'back' }] },
    Mode: { Replicated: { Replicas: 2 } },
    EndpointSpec: { Ports: [{ TargetPort: 80, PublishedPort: 8070 }] },
  });
  await wait('two tasks', async () => (await nIn('web', 'running')) === 2);
  const now = await web.inspect();
  await web.update({ version: now.Version.Index, ...now.Spec, Mode: { Replicated: { Replicas: 3 } } });
  await wait('three tasks', async () => (await nIn('web', 'running')) === 3);
  assert.deepEqual((await docker.listServices({ filters: { label: ['x=y'] } })).map((found) => found.Spec.Name), ['web']);
  console.log('service');

  const job = await docker.createService({
    Name: 'job',
    TaskTemplate: { ContainerSpec: { Image, Command: program.split(' ') } },
    Mode: { ReplicatedJob: { MaxConcurrent: 1, TotalCompletions: 3 } },
  });
  await wait("the job's end", async () => (await nIn('job', 'complete')) === 3);
  console.log('job');

  await web.remove();
  await job.remove();
  await wait("the network's end", () => network.remove().then(() => true, (error) => assert.match(error.message, /in use/)));
  await docker.getConfig('conf').remove();
  await docker.getSecret('pass').remove();
  assert.deepEqual(await docker.listServices(), []);
  await docker.swarmLeave({ force: true });
  console.log('end');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
