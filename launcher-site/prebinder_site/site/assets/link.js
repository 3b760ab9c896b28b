// Reads the address of a launch page: what `/v2/<provider>/<spec>` names. Escapes in it are kept for the request; only
// what people read is decoded.

// Returns null when `pathname` is no launch address below `base`.
export function parseLaunchAddress(pathname, base) {
  const prefix = `${base}v2/`;
  if (!pathname.startsWith(prefix)) return null;
  const [, provider, spec] = /^([^/]+)\/(.+)$/.exec(pathname.slice(prefix.length)) ?? [];
  return provider ? { provider, spec, ...namesIn(provider, spec) } : null;
}

// The repository's page and summary live below this segment; the same rule as prebinder_site/site/addresses.py.
export function segment(provider, name) {
  const text = provider === "gh" ? name.toLowerCase() : name;
  let escaped = "";
  for (const byte of new TextEncoder().encode(text)) {
    const character = String.fromCharCode(byte);
    if (character === "/") escaped += "~";
    else if (/[A-Za-z0-9.-]/.test(character)) escaped += character;
    else escaped += "_" + byte.toString(16).padStart(2, "0");
  }
  return escaped.replace(/^\./, "_2e");
}

function namesIn(provider, spec) {
  const parts = spec.split("/");
  const first = decode(parts[0]);
  if (provider === "git" && /^(https?|git|ssh):$/.test(first) && parts[1] === "") {
    return { name: `${first}//${decode(parts.slice(2, -1).join("/"))}`, ref: decode(parts.at(-1)) };
  }
  const segments = provider === "git" || (provider === "gl" && /%2f/i.test(parts[0])) ? 1 : 2;
  const name = parts.slice(0, segments).map(decode).join("/");
  return { name: provider === "gh" ? name.replace(/\.git$/, "") : name, ref: parts.slice(segments).map(decode).join("/") || "HEAD" };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
