// What every page does when scripts run: relative times, copy buttons, the filter of the home page, and parts of the
// page that follow the site as it is published again. Without it the pages are complete, only still.

const UNITS = [["year", 31_536_000], ["month", 2_592_000], ["day", 86_400], ["hour", 3600], ["minute", 60]];
const LOOK_EVERY = 4000;
const LOOK_AT_MOST = 60_000;
const relative = new Intl.RelativeTimeFormat(document.documentElement.lang, { numeric: "auto" });
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function inWords(at) {
  const seconds = (at - Date.now()) / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? [];
  return unit ? relative.format(Math.round(seconds / size), unit) : "just now";
}

function tellTimes() {
  for (const element of document.querySelectorAll("time[datetime]")) {
    const at = Date.parse(element.dateTime);
    if (Number.isNaN(at)) continue;
    const words = inWords(at);
    if (element.textContent !== words) element.textContent = words;
    element.title ||= absolute.format(at);
  }
}

const announcer = document.createElement("p");
announcer.className = "sr";
announcer.setAttribute("role", "status");
document.body.append(announcer);

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  let done = true;
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // Without a secure origin there is no clipboard API: select the text and use the old command.
    getSelection().selectAllChildren(source);
    done = document.execCommand("copy");
  }
  announcer.textContent = done ? "Copied." : "Selected. Copy it with the keyboard.";
  const words = button.firstChild;
  words.textContent = done ? "Copied" : "Selected";
  setTimeout(() => {
    words.textContent = "Copy";
    announcer.textContent = "";
  }, 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});

const filter = document.getElementById("filter");

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const card of document.querySelectorAll("#repositories > .card")) {
    card.hidden = !words.every((word) => card.dataset.words.includes(word));
    shown += card.hidden ? 0 : 1;
  }
  document.getElementById("filter-none").hidden = shown > 0;
}

function enhance() {
  for (const button of document.querySelectorAll("button[data-copy][hidden]")) button.hidden = false;
  if (filter) applyFilter();
  tellTimes();
}

// The parts that follow, as they were served: what a script changed since does not count.
const served = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.id, part.outerHTML]));

function renew(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const parts = [...fresh.querySelectorAll("[data-live]")];
  const sameShape = parts.length === served.size && parts.every((part) => served.has(part.id));
  if (!sameShape) {
    document.getElementById("main").replaceChildren(...document.importNode(fresh.getElementById("main"), true).childNodes);
    served.clear();
    for (const part of parts) served.set(part.id, part.outerHTML);
    return;
  }
  for (const part of parts) {
    if (served.get(part.id) === part.outerHTML) continue;
    const old = document.getElementById(part.id);
    const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const next = document.importNode(part, true);
    old.replaceWith(next);
    served.set(part.id, part.outerHTML);
    if (focused !== null) [...next.querySelectorAll("[href]")].find((link) => link.getAttribute("href") === focused)?.focus({ preventScroll: true });
  }
}

async function follow() {
  let pause = LOOK_EVERY;
  let last = null;
  for (;;) {
    await new Promise((wake) => setTimeout(wake, pause));
    if (document.hidden) continue;
    try {
      const answer = await fetch(location.pathname, { cache: "no-cache", signal: AbortSignal.timeout(10_000) });
      if (answer.status === 404) return;
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (text !== last) {
        renew(text);
        last = text;
        enhance();
      }
      pause = LOOK_EVERY;
    } catch {
      pause = Math.min(LOOK_AT_MOST, pause * 2);
    }
  }
}

if (filter) {
  filter.closest("label").hidden = false;
  filter.addEventListener("input", applyFilter);
}
enhance();
setInterval(tellTimes, 15_000);
if (served.size) follow();
