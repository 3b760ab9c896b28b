// A stand-in for JupyterHub that answers at once: what a click then takes is the launch endpoint's own time.
// It speaks the three calls of a launch (create user, start server, follow progress) and prints its port.
import { createServer } from "node:http";

const server = createServer({ keepAlive: true }, (request, response) => {
  request.resume();
  request.on("end", () => {
    if (request.url.endsWith("/server/progress")) {
      const url = `/user/${request.url.split("/")[4]}/`;
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write('data: {"progress": 0, "message": "Server requested"}\n\n');
      response.end(`data: {"progress": 100, "ready": true, "message": "Server ready at ${url}", "url": "${url}"}\n\n`);
    } else if (request.method === "POST") {
      response.writeHead(request.url.endsWith("/servers/") ? 202 : 201, { "content-length": "0" }).end();
    } else {
      response.writeHead(request.method === "DELETE" ? 204 : 200, { "content-length": "0" }).end();
    }
  });
});
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
