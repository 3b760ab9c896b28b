// The launch page: follows one click over the event stream of `/build/<provider>/<spec>`, from the first word to the
// user's server. It says only what the stream said; nothing here guesses how long anything takes.

import { checkLanding, landingPath, LandingError, serverAddress, serverBase } from "./landing.js";
import { parseLaunchAddress, segment } from "./link.js";
import { LogView } from "./log.js";

const ATTEMPTS = 8;
const SHORT_WAIT = 600;
const LONGEST_PAUSE = 30_000;
const STEADY = 30_000; // A connection that lasted this long makes the next loss the first one again.
const ORDER = ["find", "waiting", "fetching", "building", "pushing", "launching", "ready"];
const SAYING = {
  waiting: "Waiting for a builder",
  fetching: "Fetching the repository",
  building: "Building the image",
  pushing: "Storing the image",
  built: "The image is ready",
  launching: "Starting the server",
  ready: "Opening your server",
};

const root = document.getElementById("launch");
const byId = (id) => document.getElementById(id);
const base = document.documentElement.dataset.base;
const target = parseLaunchAddress(location.pathname, base);
const status = byId("status");
const panel = byId("log-panel");
const log = new LogView(byId("log"), byId("log-follow"), (lines) => {
  byId("log-count").textContent = lines ? `${lines.toLocaleString("en")} ${lines === 1 ? "line" : "lines"}` : "";
});

let stream = null;
let attempts = 0;
let retryTimer = 0;
let again = false;
let waitTimer = 0;
let over = false;
let openedByReader = false;
let landing = "";
let landingProblem = null;
let defaultLanding = Promise.resolve("");

class Steps {
  #rows = new Map(ORDER.map((key) => [key, { element: byId(`step-${key}`), began: 0, ended: 0 }]));
  #current = -1;
  // After a lost connection the stream tells everything again: what was shown already is not shown backwards.
  #toldUntil = -1;
  #timer = 0;

  reset() {
    this.#current = this.#toldUntil = -1;
    for (const row of this.#rows.values()) this.#blank(row);
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 1000);
  }

  get current() {
    return ORDER[this.#current];
  }

  toldAgain() {
    this.#toldUntil = this.#current;
  }

  // Makes `key` the step that is going on. Returns false when the stream is only repeating itself.
  begin(key) {
    const index = ORDER.indexOf(key);
    if (index < this.#toldUntil) return false;
    this.#toldUntil = -1;
    if (index === this.#current) return true;
    if (index < this.#current) for (const later of ORDER.slice(index)) this.#blank(this.#rows.get(later));
    this.finish();
    this.#current = index;
    const row = this.#rows.get(key);
    row.began = performance.now();
    row.element.hidden = false;
    this.#mark(row, "going", "going on");
    this.#tick();
    return true;
  }

  finish() {
    this.#end("done", "done");
  }

  fail() {
    this.#end("failed", "failed");
    clearInterval(this.#timer);
  }

  stop() {
    clearInterval(this.#timer);
  }

  say(key, message) {
    this.#rows.get(key).element.querySelector(".step-message").textContent = message.trim();
  }

  #end(style, words) {
    const row = this.#rows.get(ORDER[this.#current]);
    if (!row || row.ended) return;
    row.ended = performance.now();
    this.#mark(row, style, words);
    this.#time(row);
  }

  #blank(row) {
    row.began = row.ended = 0;
    row.element.hidden = true;
    row.element.className = "step";
    row.element.querySelector(".step-message").textContent = "";
    row.element.querySelector(".step-time").textContent = "";
  }

  #mark(row, style, words) {
    row.element.className = `step ${style}`;
    row.element.querySelector(".step-state").textContent = ` (${words})`;
    if (style === "going") row.element.setAttribute("aria-current", "step");
    else row.element.removeAttribute("aria-current");
  }

  #tick() {
    const row = this.#rows.get(ORDER[this.#current]);
    if (row && !row.ended) this.#time(row);
  }

  #time(row) {
    const seconds = ((row.ended || performance.now()) - row.began) / 1000;
    const whole = Math.floor(seconds);
    const text = whole >= 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : row.ended ? `${seconds.toFixed(1)} s` : `${whole} s`;
    row.element.querySelector(".step-time").textContent = text;
  }
}

const steps = new Steps();

function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

function title(text) {
  document.title = `${text} · ${target ? target.name : ""} · ${root.dataset.siteTitle}`;
}

function tryAgain() {
  again = true;
  begin();
  byId("status").focus({ preventScroll: true }); // the button that had the focus is gone
}

function begin() {
  over = false;
  attempts = 0;
  byId("failure").hidden = true;
  byId("failure-log").hidden = true;
  byId("open").hidden = true;
  byId("eyebrow").textContent = "Launching";
  log.clear();
  panel.hidden = true;
  steps.reset();
  steps.begin("find");
  say("Looking for the image");
  title("Launching");
  connect();
}

function connect() {
  // A failed revision is only built again when somebody asks for it.
  const query = again ? "?rebuild=true" : "";
  again = false;
  const source = new EventSource(`${root.dataset.api}build/${target.provider}/${target.spec}${query}`);
  const opened = performance.now();
  stream = source;
  source.addEventListener("open", () => log.clear());
  source.addEventListener("message", (message) => {
    if (stream !== source || over) return;
    let event;
    try {
      event = JSON.parse(message.data);
    } catch {
      return;
    }
    if (event && typeof event === "object") hear(event);
  });
  source.addEventListener("error", () => {
    if (stream !== source || over) return;
    hangUp();
    if (performance.now() - opened > STEADY) attempts = 0;
    lost();
  });
}

function hangUp() {
  stream?.close();
  stream = null;
}

function lost() {
  steps.toldAgain();
  attempts += 1;
  if (attempts > ATTEMPTS) {
    fail("The connection was lost", "The launch endpoint could not be reached.", "Check your connection, then try again.", "");
    return;
  }
  const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** attempts) * (0.75 + Math.random() / 2);
  const seconds = Math.max(1, Math.round(pause / 1000));
  say(`The connection was lost. Trying again in ${seconds} s (attempt ${attempts} of ${ATTEMPTS}).`);
  title("Connection lost");
  clearTimeout(retryTimer);
  retryTimer = setTimeout(connect, pause);
}

function hear(event) {
  const message = typeof event.message === "string" ? event.message : "";
  switch (event.phase) {
    case "ready":
      ready(event);
      return;
    case "failed":
      failed(event, message);
      return;
    case "built":
      if (steps.begin("launching")) announce("built");
      break;
    case "waiting":
      wait(message.split("\n")[0]);
      break;
    case "launching":
      if (steps.begin("launching")) announce("launching");
      steps.say("launching", message.split("\n")[0]);
      break;
    case "fetching":
    case "building":
    case "pushing":
      if (steps.begin(event.phase)) announce(event.phase);
      if (!openedByReader) panel.open = true;
      break;
  }
  if (message) {
    panel.hidden = false;
    log.push(message);
  }
}

// A message of `waiting` may be a mere notice before an image that is there. Only a wait that lasts is shown as a step.
function wait(message) {
  if (steps.current !== "find") {
    if (steps.begin("waiting")) announce("waiting");
    steps.say("waiting", message);
    return;
  }
  steps.say("find", message);
  clearTimeout(waitTimer);
  waitTimer = setTimeout(() => {
    if (over || steps.current !== "find") return;
    steps.say("find", "");
    steps.begin("waiting");
    steps.say("waiting", message);
    announce("waiting");
  }, SHORT_WAIT);
}

function announce(phase) {
  say(`${SAYING[phase]}.`);
  title(SAYING[phase]);
}

async function ready(event) {
  over = true;
  hangUp();
  steps.begin("ready");
  const url = serverBase(event.url);
  if (url === null || typeof event.token !== "string") {
    fail("The server's address is not usable", "The launch endpoint named no http or https address.", "Tell the operator of this site.", "internal");
    return;
  }
  if (landingProblem) {
    steps.finish();
    steps.stop();
    byId("eyebrow").textContent = "Ready";
    byId("open-link").href = serverAddress(url, event.token, "");
    byId("open-link").textContent = "Open your server without the landing path";
    byId("open").hidden = false;
    say("Your server is ready. The link's landing path was not opened.");
    title("Ready");
    return;
  }
  let path = landing;
  if (!path) path = acceptable(event.urlpath) || acceptable(await defaultLanding);
  announce("ready");
  const address = serverAddress(url, event.token, path);
  // Stays on the page only if the browser is slow to leave it, or the reader comes back.
  byId("open-link").href = address;
  location.replace(address);
  setTimeout(() => {
    byId("open").hidden = false;
  }, 4000);
}

function acceptable(path) {
  try {
    return typeof path === "string" ? checkLanding(path) : "";
  } catch {
    return "";
  }
}

function failed(event, message) {
  over = true;
  hangUp();
  const kind = event.failure || { 403: "refused", 404: "not-found", 429: "hub" }[event.status_code] || "";
  const known = document.querySelector(`#failures [data-kind="${CSS.escape(String(kind))}"]`);
  const lines = message.trim();
  if (lines) {
    panel.hidden = false;
    log.push(lines);
  }
  if (event.build) {
    byId("failure-log").href = `${root.dataset.api}builds/${encodeURIComponent(event.build)}/log`;
    byId("failure-log").hidden = false;
  }
  fail(known?.dataset.heading ?? "The launch failed", lines.split("\n").slice(-12).join("\n"), known?.dataset.advice ?? "", kind);
}

function fail(heading, message, advice) {
  over = true;
  hangUp();
  steps.fail();
  byId("eyebrow").textContent = "Not launched";
  byId("failure-heading").textContent = heading;
  byId("failure-message").textContent = message;
  byId("failure-message").hidden = !message;
  byId("failure-advice").textContent = advice;
  byId("failure").hidden = false;
  say(`${heading}.`);
  title("Failed");
  // Whoever reads by ear hears why, and the keyboard goes on from here.
  byId("failure").focus({ preventScroll: true });
}

function describe() {
  const host = { gh: "GitHub", gl: "GitLab", gist: "Gist", git: "Git repository" }[target.provider] ?? target.provider;
  byId("name").textContent = target.name;
  const where = document.createElement("code");
  where.textContent = target.ref;
  byId("source").replaceChildren(`${host} · `, where);
  defaultLanding = fetch(`${base}repositories/${encodeURIComponent(target.provider)}/${segment(target.provider, target.name)}/repository.json`, {
    signal: AbortSignal.timeout(5000),
  })
    .then((answer) => (answer.ok ? answer.json() : {}))
    .then((summary) => {
      if (typeof summary.title === "string") byId("name").textContent = summary.title;
      if (typeof summary.title === "string" && summary.title !== target.name) byId("source").prepend(`${target.name} · `);
      if (typeof summary.page === "string") {
        byId("failure-repository").href = base + summary.page;
        byId("failure-repository").hidden = false;
      }
      return summary.urlpath ?? "";
    })
    .catch(() => "");
}

root.hidden = false;
if (target === null) {
  byId("name").textContent = "This link names nothing";
  fail("No such repository or ref", "A launch link is /v2/provider/repository/ref.", "Make a link on the page of repositories.", "not-found");
  byId("retry").hidden = true;
} else {
  try {
    landing = landingPath(new URLSearchParams(location.search));
  } catch (error) {
    if (!(error instanceof LandingError)) throw error;
    landingProblem = error.message;
    byId("landing-message").textContent = error.message;
    byId("landing").hidden = false;
  }
  panel.addEventListener("toggle", () => panel.open && log.revealed());
  panel.querySelector("summary").addEventListener("click", () => {
    openedByReader = true;
  });
  byId("retry").addEventListener("click", tryAgain);
  addEventListener("pagehide", () => {
    clearTimeout(retryTimer);
    hangUp();
  });
  // Back on a page that the browser had kept: the click is asked for anew, and joins what it was in.
  addEventListener("pageshow", (event) => {
    if (event.persisted && !over && stream === null && target) begin();
  });
  describe();
  begin();
}
