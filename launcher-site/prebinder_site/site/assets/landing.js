// Judges landing paths and computes the address that the browser finally opens. Links can be written by anybody:
// whatever a link holds, that address is on the user's own server.
//
// The same rules as prebinder/model/links.py; tests/launcher_site/landing_cases.json is run against both.

const LONGEST = 4096;
const CONTROL_OR_BACKSLASH = /[\u0000-\u001f\u007f\\]/;
const SCHEME = /^\s*[a-z][a-z0-9+.-]*:/i;

export class LandingError extends Error {}

// Undoes percent-escapes of ASCII characters, the only ones that could change where an address leads.
const decodeAscii = (text) =>
  text.replace(/%([0-7][0-9a-f])/gi, (_, hex) => String.fromCharCode(parseInt(hex, 16)));

const quotePath = (path) =>
  path
    .replace(/^\/+/, "")
    .split("/")
    .map((part) => encodeURIComponent(part).replace(/[!'()*]/g, (c) => "%" + c.charCodeAt(0).toString(16).toUpperCase()))
    .join("/");

// The path that a launch link's query names, relative to the server's base, or "" (labpath, else filepath, else urlpath).
export function landingPath(query) {
  const labpath = query.get("labpath");
  if (labpath) return checkLanding("doc/tree/" + quotePath(labpath));
  const filepath = query.get("filepath");
  if (filepath) return checkLanding("tree/" + quotePath(filepath));
  return checkLanding(query.get("urlpath") || "");
}

// Returns `path` without leading slashes if it stays below any base that it is joined to; throws LandingError if not.
export function checkLanding(path) {
  if ([...path].length > LONGEST) {
    throw new LandingError(`The link's landing path is longer than ${LONGEST} characters.`);
  }
  if (CONTROL_OR_BACKSLASH.test(path) || CONTROL_OR_BACKSLASH.test(decodeAscii(path.split("?", 1)[0]))) {
    throw new LandingError("The link's landing path has control characters or backslashes.");
  }
  const relative = path.replace(/^\/+/, "");
  const onlyPath = relative.split(/[?#]/, 1)[0];
  if (SCHEME.test(relative) || decodeAscii(onlyPath).split("/").includes("..") || !staysBelow("http://user.invalid/user/name/", relative)) {
    throw new LandingError("The link's landing path leaves the user's own server.");
  }
  return relative;
}

// Where the browser goes: the server's `url` (http or https, ends in a slash), the landing path, and the token, which is
// added to a query inside the landing path (nbgitpuller). Throws LandingError.
export function serverAddress(url, token, landing) {
  const relative = checkLanding(landing);
  const hash = relative.indexOf("#");
  const fragment = hash < 0 ? "" : relative.slice(hash);
  const rest = hash < 0 ? relative : relative.slice(0, hash);
  const mark = rest.indexOf("?");
  const path = mark < 0 ? rest : rest.slice(0, mark);
  const query = mark < 0 ? "" : rest.slice(mark + 1);
  const address = `${url}${path}?${query ? query + "&" : ""}${new URLSearchParams({ token })}${fragment}`;
  if (!staysBelow(url, address)) throw new LandingError("The link's landing path leaves the user's own server.");
  return address;
}

// The server's address as the stream told it, or null when it is none that a page may open.
export function serverBase(url) {
  const parsed = typeof url === "string" ? parse(url) : null;
  if (!parsed) return null;
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:") return null;
  if (parsed.search || parsed.hash || parsed.username || parsed.password) return null;
  return parsed.href.endsWith("/") ? parsed.href : parsed.href + "/";
}

// As URL.parse, which browsers of a few years ago do not have.
function parse(address, base) {
  try {
    return new URL(address, base);
  } catch {
    return null;
  }
}

function staysBelow(base, address) {
  const below = new URL(base);
  const joined = parse(address, base);
  if (!joined) return false;
  return joined.origin === below.origin && joined.pathname.startsWith(below.pathname) && !joined.username && !joined.password;
}
