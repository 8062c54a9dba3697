// The page: takes photos, has them classified by the worker, shows and saves the answers.

import { chosen, handedOver } from "./photos.js";
import { bestClasses, statusOf, toCsv } from "./rows.js";

const IN_FLIGHT = 2; // one photo is decoded while the network looks at another
const SHOWN = 500; // rows on the page; the CSV has all
const CONTROL_WAIT_MS = 3000;

const get = (id) => document.getElementById(id);
const here = (path) => new URL(path, import.meta.url).href;
const percent = (prob) => `${(100 * prob).toFixed(1)}%`;
const facts = await (await fetch(here("facts.json"))).json();
const topk = Math.min(5, facts.labels.length);

let worker;
let minProb = Number(stored("getItem") ?? facts.min_prob);
let waiting = []; // photos to classify, {id, path, file}
let photos = []; // all of this batch; an answered one has guesses or error
const pending = new Map(); // ticket of the worker: photo
let lastTicket = 0;
let shown = null; // the photo in #answer
let photoUrl = null;

listen();
showFacts();
showClasses();
const worksOffline = await isControlled();
startWorker();

/** Let the service worker come first, so that what is fetched from here on is kept for later visits. */
async function isControlled() {
  if (!navigator.serviceWorker) return false; // not https, or switched off
  try {
    const controlled = new Promise((resolve) => {
      navigator.serviceWorker.addEventListener("controllerchange", resolve, { once: true });
      setTimeout(resolve, CONTROL_WAIT_MS);
    });
    await navigator.serviceWorker.register(here("service_worker.js"));
    if (!navigator.serviceWorker.controller) await controlled;
    return Boolean(navigator.serviceWorker.controller);
  } catch {
    return false;
  }
}

/** A worker made of a blob is under this page's policy, one made of an address would not be. */
function startWorker() {
  const source = new Blob([`import ${JSON.stringify(here("classifier.js"))};`], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(source), { type: "module" });
  worker.onerror = () => fail("this browser is too old for it, or a file of the site is missing");
  worker.onmessage = ({ data }) => {
    if (data.total) showLoading(data.loaded, data.total);
    else if (data.ready) begin(data.ready);
    else if (data.failed) fail(data.failed);
    else if ("difference" in data) showDifference(data.difference);
    else take(data);
  };
  worker.postMessage({ facts });
  feed();
}

async function begin({ backend, threads, difference }) {
  get("loading").hidden = true;
  document.body.dataset.ready = backend;
  const computes = backend === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`;
  addFact("computes with", computes);
  say("Ready");
  if (difference !== undefined) showDifference(difference);
  if (!worksOffline || !(await keepAll(backend))) return;
  document.body.dataset.offline = "yes";
  if (!get("status").className) say("Ready, also without a network");
}

function showDifference(difference) {
  addFact("test pattern", `probabilities within ${difference.toFixed(6)} of the exported model's`);
  if (difference < facts.same_below) return;
  get("status").className = "warning";
  say("This browser does not compute what the model should: do not trust its answers");
}

/** Have the service worker keep whatever this device needs. */
function keepAll(backend) {
  const examples = (facts.examples ?? []).filter(Boolean);
  const keep = ["model.onnx", `runtime/ort-${backend}.js`, `runtime/ort-${backend}.wasm`, ...examples];
  const { port1, port2 } = new MessageChannel();
  const answer = new Promise((resolve) => (port1.onmessage = ({ data }) => resolve(data)));
  navigator.serviceWorker.controller.postMessage({ keep }, [port2]);
  return answer;
}

function fail(reason) {
  get("loading").hidden = true;
  get("status").className = "warning";
  say(`The model cannot be started: ${reason}`);
}

/** The threshold of this site, not of others on the host; null where a browser or a frame keeps nothing. */
function stored(act, ...value) {
  try {
    return localStorage[act](here("min-prob"), ...value);
  } catch {
    return null;
  }
}

function say(text) {
  get("status").textContent = text;
}

function showLoading(loaded, total) {
  get("loading").value = loaded / total;
  say(loaded < total ? `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB` : "Starting the model");
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(1);
}

// Photos in, answers out

function classify(added) {
  if (!added.length) return say("No photos in there");
  photos = added.map((photo, id) => ({ ...photo, id }));
  waiting = [...photos];
  shown = null;
  get("photos").replaceChildren();
  get("answer").hidden = true;
  get("batch").hidden = photos.length === 1;
  get("more").hidden = photos.length <= SHOWN;
  get("more").textContent = `The first ${SHOWN} are shown; the CSV has all.`;
  for (const photo of photos.slice(0, SHOWN)) if (photos.length > 1) get("photos").append(rowOf(photo));
  count();
  feed();
}

async function takeOver(transfer) {
  try {
    classify(await handedOver(transfer, facts.extensions));
  } catch (error) { // a folder without permission, a file that is gone
    say(`Not all of this can be read: ${error.message}`);
  }
}

function feed() {
  while (worker && pending.size < IN_FLIGHT && waiting.length) {
    const photo = waiting.shift();
    pending.set(++lastTicket, photo);
    worker.postMessage({ id: lastTicket, file: photo.file });
  }
}

function take({ id, probs, error, size, thumbnail }) {
  const photo = pending.get(id);
  pending.delete(id);
  if (photos[photo.id] !== photo) return feed(); // of a batch that was replaced
  if (error) {
    photo.error = error;
  } else {
    photo.guesses = bestClasses(probs, topk).map((index) => ({
      index, label: facts.labels[index], folder: facts.folders[index], prob: probs[index],
    }));
    Object.assign(photo, { size, thumbnail });
  }
  if (photos.length === 1) show(photo);
  else updateRow(photo);
  count();
  feed();
}

function answered() {
  return photos.filter((photo) => photo.guesses || photo.error);
}

function count() {
  const done = answered();
  const of = (status) => done.filter((photo) => statusOf(photo, minProb) === status).length;
  const unsure = of("unsure"), errors = of("error");
  get("done").value = done.length / Math.max(1, photos.length);
  get("done").hidden = get("stop").hidden = !waiting.length && !pending.size;
  get("save").disabled = !done.length;
  get("count").textContent =
    `${done.length} of ${photos.length} photos` + (unsure ? `, ${unsure} unsure` : "") + (errors ? `, ${errors} failed` : "");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv(answered(), topk, minProb)], { type: "text/csv" }));
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// What is shown

function show(photo) {
  shown = photo;
  if (photoUrl) URL.revokeObjectURL(photoUrl);
  photoUrl = URL.createObjectURL(photo.file);
  get("photo").src = photoUrl;
  get("photo").hidden = Boolean(photo.error);
  get("name").textContent = photo.error ? photo.path : `${photo.path}, ${photo.size[0]} × ${photo.size[1]} pixels`;
  showVerdict(photo);
  get("guesses").replaceChildren(...(photo.guesses ?? []).map(guessOf));
  get("answer").hidden = false;
  for (const row of get("photos").children) row.firstChild.setAttribute("aria-pressed", Number(row.dataset.id) === photo.id);
}

function showVerdict(photo) {
  const status = statusOf(photo, minProb);
  get("answer").dataset.status = status;
  get("verdict").textContent =
    status === "error" ? `No answer: ${photo.error}`
    : status === "unsure" ? `Unsure: no class reaches ${percent(minProb)}` : "";
}

function guessOf({ index, label, folder, prob }) {
  const item = element("li", "guess");
  item.dataset.class = folder;
  item.dataset.prob = prob.toFixed(6);
  const example = facts.examples?.[index];
  if (example) item.append(image(example, `an example of ${label}`));
  const text = element("div", "text");
  const name = element("span", "name", label);
  if (folder !== label) name.append(" ", element("small", "", folder));
  const bar = element("span", "track");
  bar.append(element("span", "fill"));
  bar.firstChild.style.width = `${100 * prob}%`;
  text.append(name, element("span", "prob", percent(prob)), bar);
  item.append(text);
  return item;
}

function rowOf(photo) {
  const row = document.createElement("li");
  row.dataset.id = photo.id;
  const button = element("button", "row");
  button.type = "button";
  button.disabled = true;
  button.onclick = () => {
    show(photo);
    get("answer").scrollIntoView({ block: "nearest" });
  };
  button.append(element("span", "thumbnail"), element("span", "path", photo.path), element("span", "best"), element("span", "prob"));
  row.append(button);
  return row;
}

function updateRow(photo) {
  const button = get("photos").children[photo.id]?.firstChild;
  if (!button) return;
  const [frame, , best, prob] = button.children;
  const status = statusOf(photo, minProb);
  button.dataset.status = status;
  button.disabled = false;
  best.textContent = photo.error ?? photo.guesses[0].label + (status === "unsure" ? " (unsure)" : "");
  prob.textContent = photo.error ? "" : percent(photo.guesses[0].prob);
  if (photo.thumbnail && !frame.firstChild) {
    const picture = image(URL.createObjectURL(photo.thumbnail), "");
    picture.onload = () => URL.revokeObjectURL(picture.src);
    frame.append(picture);
  }
}

function showFacts() {
  const { resize, crop } = facts.preprocessing;
  addFact("model", `${facts.model}, ${facts.precision}, ${megabytes(facts.model_bytes)} MB`);
  addFact("images", `short side to ${resize}, centre ${crop} × ${crop}`);
  const { images, same_top1: same } = facts.agreement;
  addFact("checked", `same best class as the trained model on ${percent(same)} of ${images} photos`);
  get("min-prob").value = Math.round(100 * minProb);
}

function addFact(name, value) {
  get("facts").append(element("dt", "", name), element("dd", "", value));
}

function showClasses() {
  get("class-count").textContent = `${facts.labels.length} classes`;
  get("class-list").classList.toggle("pictures", Boolean(facts.examples));
  get("class-list").append(
    ...facts.labels.map((label, index) => {
      const item = document.createElement("li");
      const example = facts.examples?.[index];
      if (example) item.append(image(example, ""));
      item.append(element("span", "", label));
      return item;
    }),
  );
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function image(source, alt) {
  const made = document.createElement("img");
  Object.assign(made, { src: source, alt, loading: "lazy", width: 48, height: 48 });
  return made;
}

// What people do

function listen() {
  for (const id of ["camera", "files", "folder"]) {
    get(id).onchange = ({ target }) => {
      const added = chosen(target.files, facts.extensions);
      target.value = ""; // the same photo may be chosen again
      classify(added);
    };
    if (get(id).files.length) get(id).onchange({ target: get(id) }); // chosen before this script was there
  }
  get("folder").closest("label").hidden = !("webkitdirectory" in HTMLInputElement.prototype);
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  };
  document.ondragleave = ({ relatedTarget }) => relatedTarget ?? document.body.classList.remove("dragging");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    return takeOver(event.dataTransfer);
  };
  document.onpaste = ({ clipboardData }) => clipboardData.files.length && takeOver(clipboardData);
  get("save").onclick = save;
  get("stop").onclick = () => {
    waiting = [];
    count();
  };
  get("min-prob").oninput = ({ target }) => {
    minProb = Math.min(1, Math.max(0, target.valueAsNumber / 100 || 0));
    stored("setItem", minProb);
    for (const photo of answered()) updateRow(photo);
    if (shown) showVerdict(shown);
    count();
  };
  get("filter").oninput = ({ target }) => {
    const wanted = target.value.trim().toLowerCase();
    for (const item of get("class-list").children) item.hidden = !item.textContent.toLowerCase().includes(wanted);
  };
}
