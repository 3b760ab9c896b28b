// The form that makes a launch link and its badge.

const byId = (id) => document.getElementById(id);
const form = byId("link-form");
const fields = Object.fromEntries(["provider", "repository", "ref", "path-kind", "path"].map((id) => [id, byId(id)]));
const PLACEHOLDERS = { gh: "owner/repository", git: "https://git.example.org/course.git" };
const REPOSITORY = /^[A-Za-z0-9][\w.-]*\/[\w.-]+$/;

const value = (id) => fields[id].value.trim();
// Inside Markdown and reStructuredText an address must hold no brackets or apostrophes.
const strict = (text) => text.replace(/[!'()*]/g, (c) => "%" + c.charCodeAt(0).toString(16).toUpperCase());

// A pasted address of GitHub says repository, ref and file in one.
function unpack() {
  const match = /^(?:https?:\/\/)?(?:www\.)?github\.com\/([^/\s]+)\/([^/\s?#]+)(?:\/(?:tree|blob)\/([^/\s?#]+)(?:\/([^\s?#]+))?)?\/?(?:[?#]\S*)?$/i.exec(value("repository"));
  if (!match) {
    if (/^(https?|ssh|git):\/\//i.test(value("repository"))) fields.provider.value = "git";
    return;
  }
  const [, owner, repository, ref, path] = match;
  fields.provider.value = "gh";
  fields.repository.value = `${owner}/${repository.replace(/\.git$/, "")}`;
  if (ref) fields.ref.value = decodeURIComponent(ref);
  if (path) {
    fields.path.value = decodeURIComponent(path);
    fields["path-kind"].value = "labpath";
  }
}

// The link, or null and why there is none.
function link() {
  const repository = value("repository").replace(/\/+$/, "");
  if (!repository) return [null, ""];
  const provider = fields.provider.value;
  let name;
  if (provider === "gh") {
    if (!REPOSITORY.test(repository)) return [null, "Write the repository as owner/repository."];
    name = repository;
  } else {
    if (!/^(https?|ssh|git):\/\/[^/]+\/.+/i.test(repository)) return [null, "Write the repository's whole address, for example https://git.example.org/course.git."];
    name = strict(encodeURIComponent(repository));
  }
  const ref = (value("ref") || "HEAD").split("/").map((part) => strict(encodeURIComponent(part))).join("/");
  const path = value("path");
  const query = path ? `?${fields["path-kind"].value}=${strict(encodeURIComponent(path)).replaceAll("%2F", "/")}` : "";
  return [`${form.dataset.site}v2/${provider}/${name}/${ref}${query}`, ""];
}

function show() {
  const [address, problem] = link();
  const badge = `${form.dataset.site}badge_logo.svg`;
  byId("form-message").textContent = problem;
  fields.repository.setAttribute("aria-invalid", String(Boolean(problem)));
  byId("made").hidden = !address;
  if (!address) return;
  byId("made-launch").href = new URL(address).pathname + new URL(address).search;
  byId("made-link").textContent = address;
  byId("made-markdown").textContent = `[![Launch](${badge})](${address})`;
  byId("made-html").textContent = `<a href="${address.replaceAll("&", "&amp;")}"><img src="${badge}" alt="Launch"></a>`;
  byId("made-rst").textContent = `.. image:: ${badge}\n   :target: ${address}\n   :alt: Launch`;
}

if (form) {
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  fields.repository.addEventListener("change", () => {
    unpack();
    show();
  });
  fields.repository.addEventListener("paste", () => setTimeout(() => { unpack(); show(); }));
  fields.provider.addEventListener("change", () => {
    fields.repository.placeholder = PLACEHOLDERS[fields.provider.value];
    show();
  });
  form.addEventListener("input", show);
}
