// Keeps the page for use without a network. Each file is kept under its hash, so a new version of the site fetches only
// what has changed, and takes over once no page of the old one is open.

const FILES = __FILES__; // path: hash
const SHELL = __SHELL__; // paths needed to show the page; the rest is kept as it is used
const CACHE = `flowers ${self.registration.scope}`;

// Nothing leaves the device; and isolated pages may compute with several threads.
const HEADERS = {
  "Content-Security-Policy": `__POLICY__`,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("message", (event) => event.waitUntil(keep(event.data.keep, event.ports[0])));
self.addEventListener("fetch", (event) => {
  const path = pathOf(event.request);
  if (path in FILES) event.respondWith(answer(path, event));
});

async function install() {
  const cache = await caches.open(CACHE);
  const before = (await cache.keys()).map(({ url }) => url.split("?")[0]);
  const wanted = Object.keys(FILES).filter((path) => SHELL.includes(path) || before.includes(urlOf(path)));
  await Promise.all(wanted.map(store));
}

async function activate() {
  const cache = await caches.open(CACHE);
  const current = new Set(Object.keys(FILES).map(keyOf));
  await Promise.all((await cache.keys()).filter(({ url }) => !current.has(url)).map((request) => cache.delete(request)));
  await self.clients.claim();
}

async function keep(paths, port) {
  try {
    await Promise.all(paths.map(store));
    port.postMessage(true);
  } catch {
    port.postMessage(false);
  }
}

async function store(path) {
  await (await find(path)).stored;
}

async function answer(path, event) {
  const { response, stored } = await find(path);
  event.waitUntil(stored.catch(() => {})); // a full disk: the page works, with a network
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

/** A file from the cache; from the network, checked with the host for changes, where it is not there yet. */
async function find(path) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(keyOf(path));
  if (kept) return { response: kept, stored: Promise.resolve() };
  const response = await fetch(urlOf(path), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${path}: the host answers ${response.status}`);
  return { response, stored: cache.put(keyOf(path), response.clone()) };
}

function pathOf(request) {
  const url = request.url.split(/[?#]/)[0];
  if (request.method !== "GET" || !url.startsWith(self.registration.scope)) return null;
  return decodeURIComponent(url.slice(self.registration.scope.length)) || "index.html";
}

function urlOf(path) {
  return self.registration.scope + path;
}

function keyOf(path) {
  return `${urlOf(path)}?${FILES[path]}`;
}
