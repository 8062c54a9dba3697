// From a decoded photo to the square that the network sees: the arithmetic of Preprocessing.view, preprocessing.py.
//
// A canvas smooths by rules of its own, different in each browser; so the antialiased filter is computed here, on whole
// pixels: across first, then down, with weights in 16 bits and a rounded 8-bit picture between the two passes, as
// torch.nn.functional.interpolate does for uint8.

const CHANNELS = 3;
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic }, // Keys' kernel with a = -0.5
};

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * What each output pixel of one axis is made of.
 *
 * @returns {{starts: Int32Array, counts: Int32Array, weights: Int16Array, taps: number, bits: number}}
 *   Output i is the sum of weights[i * taps + k] * input[starts[i] + k], divided by 2 ** bits.
 */
function tapsOf(inputSize, outputSize, { support, weight }) {
  const scale = inputSize / outputSize;
  const reach = support * Math.max(scale, 1);
  const taps = Math.ceil(reach) * 2 + 1;
  const starts = new Int32Array(outputSize);
  const counts = new Int32Array(outputSize);
  const exact = new Float64Array(outputSize * taps);
  let largest = 0;
  for (let i = 0; i < outputSize; i++) {
    const center = scale * (i + 0.5);
    const start = Math.max(Math.trunc(center - reach + 0.5), 0);
    const count = Math.min(Math.min(Math.trunc(center + reach + 0.5), inputSize) - start, taps);
    let total = 0;
    for (let k = 0; k < count; k++) {
      total += exact[i * taps + k] = weight((k + start - center + 0.5) / Math.max(scale, 1));
    }
    for (let k = 0; k < count; k++) largest = Math.max(largest, (exact[i * taps + k] /= total));
    starts[i] = start;
    counts[i] = count;
  }
  let bits = 0; // as many as leave the largest weight within 16 bits
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const weights = Int16Array.from(exact, (w) => Math.trunc(w * 2 ** bits + (w < 0 ? -0.5 : 0.5)));
  return { starts, counts, weights, taps, bits };
}

/** Python's round(): a half goes to the even neighbour. */
function roundHalfToEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/**
 * Scale the short side to `resize`, antialiased, and cut the centre.
 *
 * Of a photo more than twice as long as wide only the middle is looked at.
 *
 * @param {number} width of the photo in pixels, upright.
 * @param {number} height
 * @param {(left: number, top: number, width: number, height: number) => Uint8ClampedArray} read gives RGBA of a
 *   rectangle; called for strips of few rows, since phones have no canvas for a whole photo.
 * @param {{resize: number, crop: number, interpolation: string}} preprocessing
 * @returns {Uint8Array} RGB, crop * crop * 3.
 */
export function viewOf(width, height, read, { resize, crop, interpolation }) {
  const short = Math.min(width, height);
  const [marginX, marginY] = [width, height].map((length) => Math.max(0, Math.floor((length - 2 * short) / 2)));
  const [innerWidth, innerHeight] = [width - 2 * marginX, height - 2 * marginY];
  const [scaledWidth, scaledHeight] = [innerWidth, innerHeight].map((length) => Math.floor((resize * length) / short));
  const across = tapsOf(innerWidth, scaledWidth, FILTERS[interpolation]);
  const down = tapsOf(innerHeight, scaledHeight, FILTERS[interpolation]);
  const left = roundHalfToEven((scaledWidth - crop) / 2);
  const top = roundHalfToEven((scaledHeight - crop) / 2);

  // Only the part of the photo that the crop is made of is read.
  const [firstX, endX] = [across.starts[left], across.starts[left + crop - 1] + across.counts[left + crop - 1]];
  const [firstY, endY] = [down.starts[top], down.starts[top + crop - 1] + down.counts[top + crop - 1]];
  const narrow = new Uint8ClampedArray((endY - firstY) * crop * CHANNELS);
  const stripRows = Math.max(1, Math.floor((1 << 20) / (endX - firstX)));
  for (let y = firstY; y < endY; y += stripRows) {
    const rows = Math.min(stripRows, endY - y);
    const pixels = read(marginX + firstX, marginY + y, endX - firstX, rows);
    squeeze(pixels, endX - firstX, firstX, rows, across, left, crop, narrow.subarray((y - firstY) * crop * CHANNELS));
  }
  return flatten(narrow, firstY, down, top, crop);
}

/** Across: RGBA rows, whose first column is `firstX`, to RGB rows of `crop` pixels. */
function squeeze(pixels, width, firstX, rows, { starts, counts, weights, taps, bits }, left, crop, output) {
  const half = 1 << (bits - 1);
  for (let y = 0, o = 0; y < rows; y++) {
    for (let x = left; x < left + crop; x++, o += CHANNELS) {
      let [red, green, blue] = [half, half, half];
      let p = (y * width + starts[x] - firstX) * 4;
      for (let k = x * taps, end = k + counts[x]; k < end; k++, p += 4) {
        const weight = weights[k];
        red += weight * pixels[p];
        green += weight * pixels[p + 1];
        blue += weight * pixels[p + 2];
      }
      output[o] = red >> bits;
      output[o + 1] = green >> bits;
      output[o + 2] = blue >> bits;
    }
  }
}

/** Down: RGB rows, of which the first is `firstY`, to `crop` rows. */
function flatten(narrow, firstY, { starts, counts, weights, taps, bits }, top, crop) {
  const row = crop * CHANNELS;
  const output = new Uint8ClampedArray(crop * row);
  const sums = new Int32Array(row);
  for (let y = top, o = 0; y < top + crop; y++, o += row) {
    sums.fill(1 << (bits - 1));
    for (let k = 0; k < counts[y]; k++) {
      const weight = weights[y * taps + k];
      const p = (starts[y] - firstY + k) * row;
      for (let x = 0; x < row; x++) sums[x] += weight * narrow[p + x];
    }
    for (let x = 0; x < row; x++) output[o + x] = sums[x] >> bits;
  }
  return new Uint8Array(output.buffer);
}
