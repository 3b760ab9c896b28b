// Clicks: `node load.mjs URL TOTAL AT_ONCE`. Each opens the event stream, reads up to `ready`, and closes it.
// Prints one line of JSON: seconds in all, and the milliseconds of every click. A failed click ends it with an error.
import { request } from "node:http";

const [url, total, atOnce] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const times = [];
let begun = 0;

function click() {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const sent = request(url, { agent: false, headers: { accept: "text/event-stream" } }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (piece) => {
        text += piece;
        if (text.includes('"phase": "ready"')) {
          times.push(performance.now() - start);
          sent.destroy();
          resolve();
        } else if (text.includes('"phase": "failed"')) {
          reject(new Error(text));
        }
      });
      response.on("end", () => reject(new Error(`the stream ended: ${text}`)));
      response.on("error", () => {});
    });
    sent.on("error", (error) => (error.code === "ECONNRESET" ? resolve() : reject(error)));
    sent.end();
  });
}

async function person() {
  while (begun < total) {
    begun += 1;
    await click();
  }
}

const start = performance.now();
await Promise.all(Array.from({ length: atOnce }, person));
console.log(JSON.stringify({ seconds: (performance.now() - start) / 1000, times }));
