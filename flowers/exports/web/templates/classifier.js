// The worker that classifies: a photo's file in, probabilities out. The page stays free meanwhile.
//
// From the page: {facts} first, then {id, file} for each photo. To the page: {loaded, total} while the model is fetched,
// {ready: {backend, threads}} or {failed}, then {id, probs, size, thumbnail} or {id, error} for each photo, and once
// (in ready, or after the first photo) difference: how far the answer to a test pattern is from the exported model's.

import { viewOf } from "./view.js";

const THUMBNAIL_SIDE = 96;
const MAX_FILE_BYTES = 2 ** 30;

const here = (path) => new URL(path, import.meta.url).href;
let ort, session, facts, canvas, difference;
let running; // of the network, one picture at a time; first of all it starts

self.onmessage = async ({ data }) => {
  if (data.facts) {
    facts = data.facts;
    running = start().then(
      (ready) => self.postMessage({ ready }),
      (error) => self.postMessage({ failed: String(error.message ?? error) }),
    );
    return;
  }
  try {
    self.postMessage({ id: data.id, ...(await classify(data.file)) });
  } catch (error) {
    self.postMessage({ id: data.id, error: String(error.message ?? error) });
  }
  if (session && difference === undefined) {
    difference = NaN; // once is enough
    difference = await check(run);
    self.postMessage({ difference });
  }
};

/** Open the model on a GPU, if that computes what the exported file does; else by WebAssembly, checked after a photo. */
async function start() {
  const model = fetchModel();
  if (facts.backends.includes("webgpu") && (await hasGpu())) {
    try {
      const threads = await open("webgpu", model);
      difference = await check(infer);
      if (difference < facts.same_below) return { backend: "webgpu", threads, difference };
    } catch {
      // a driver that cannot run this network; what follows can
    }
    difference = undefined;
  }
  return { backend: "wasm", threads: await open("wasm", model) };
}

async function fetchModel() {
  const response = await fetch(here("model.onnx"));
  if (!response.ok) throw new Error(`model.onnx: the host answers ${response.status}`);
  const model = new Uint8Array(facts.model_bytes);
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    model.set(value, loaded);
    loaded += value.length;
    self.postMessage({ loaded, total: model.length });
  }
  if (loaded !== model.length) throw new Error(`model.onnx: got ${loaded} of ${model.length} bytes; load again`);
  return model;
}

async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter();
  return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
}

async function open(backend, model) {
  ort = await import(here(`runtime/ort-${backend}.js`));
  ort.env.logLevel = "error"; // it warns of every GPU that leaves a node to the CPU
  ort.env.wasm.wasmPaths = { wasm: here(`runtime/ort-${backend}.wasm`) };
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const options = { executionProviders: [backend] };
  // No model, and refused as such; but meanwhile the runtime is compiled, while the model is still on its way.
  await ort.InferenceSession.create(new Uint8Array(), options).catch(() => {});
  session = await ort.InferenceSession.create(await model, options);
  return ort.env.wasm.numThreads;
}

/** Largest difference of a probability of the test pattern; NaN where one is no number. */
async function check(answer) {
  const { crop } = facts.preprocessing;
  const probs = await answer(Uint8Array.from({ length: crop * crop * 3 }, (_, i) => i * 31 + (i >> 8) * 17));
  return Math.max(...facts.check_probs.map((prob, index) => Math.abs(prob - probs[index])));
}

function run(view) {
  const result = running.then(() => infer(view));
  running = result.catch(() => {});
  return result;
}

async function infer(view) {
  if (!session) throw new Error("the model is not started");
  const { crop } = facts.preprocessing;
  const { probs } = await session.run({ images: new ort.Tensor("uint8", view, [1, crop, crop, 3]) });
  return Array.from(probs.data);
}

async function classify(file) {
  const bitmap = await decode(file);
  try {
    const view = viewOf(bitmap.width, bitmap.height, (...box) => read(bitmap, ...box), facts.preprocessing);
    const thumbnail = await thumbnailOf(view);
    return { probs: await run(view), size: [bitmap.width, bitmap.height], thumbnail };
  } finally {
    bitmap.close();
  }
}

/** Upright; colour profiles are converted to sRGB where the model was trained so, else left alone, as predict.py does. */
async function decode(file) {
  if (file.size === 0) throw new Error("zero bytes");
  if (file.size > MAX_FILE_BYTES) throw new Error(`too large a file (${(file.size / 2 ** 30).toFixed(1)} GiB)`);
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (isCutJpeg(bytes)) throw new Error("truncated JPEG");
  const colorSpaceConversion = facts.preprocessing.to_srgb ? "default" : "none";
  try {
    return await createImageBitmap(new Blob([bytes]), { imageOrientation: "from-image", colorSpaceConversion });
  } catch {
    throw new Error("not an image that this browser decodes");
  }
}

/** Browsers fill up with grey what is missing; predict.py refuses such a file. */
function isCutJpeg(bytes) {
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return false;
  let at = 2; // headers may hold a whole JPEG, the preview: step over them to the scan
  while (bytes[at] === 0xff && bytes[at + 1] !== 0xda) at += 2 + (bytes[at + 2] << 8) + bytes[at + 3];
  for (let end = bytes.length - 2; end > at; end--) if (bytes[end] === 0xff && bytes[end + 1] === 0xd9) return false;
  return true;
}

/** A rectangle of the photo as RGBA, transparency laid on white. */
function read(bitmap, left, top, width, height) {
  if (canvas?.width !== width || canvas.height < height) canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, left, top, width, height, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

/** A small JPEG of what the network saw. */
async function thumbnailOf(view) {
  const { crop } = facts.preprocessing;
  const pixels = new ImageData(crop, crop);
  for (let i = 0, o = 0; i < view.length; i += 3, o += 4) {
    pixels.data[o] = view[i];
    pixels.data[o + 1] = view[i + 1];
    pixels.data[o + 2] = view[i + 2];
    pixels.data[o + 3] = 255;
  }
  const small = new OffscreenCanvas(THUMBNAIL_SIDE, THUMBNAIL_SIDE);
  const image = await createImageBitmap(pixels);
  small.getContext("2d").drawImage(image, 0, 0, THUMBNAIL_SIDE, THUMBNAIL_SIDE);
  return small.convertToBlob({ type: "image/jpeg", quality: 0.8 });
}
