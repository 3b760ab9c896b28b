// `node follow.mjs SITE SPEC`: follow a click with BinderHub's own client, as a web page would; prints what it yields.
// The client is made for browsers: the few names of a browser that it touches are given here.
globalThis.window = globalThis;
globalThis.document = { cookie: "", hidden: false, addEventListener() {}, removeEventListener() {} };
const { BinderRepository } = await import("@jupyterhub/binderhub-client/client.js");

const [site, spec] = process.argv.slice(2);
const repository = new BinderRepository(spec, new URL("build/", site));
for await (const line of repository.fetch()) {
  console.log(JSON.stringify(line));
  if (line.phase === "ready" || line.phase === "failed") {
    repository.close();
    break;
  }
}
process.exit(0);
