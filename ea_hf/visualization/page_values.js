"use strict";
// The values: what is stored is unpacked, what is not is computed from it (see packing.py).

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const LOGIT_NAMES = ["scores", "previous", "convolution", "evolved", "vanilla", "difference"];
const MOST_KEPT_NUMBERS = 60_000_000; // of computed maps, in memory

/** Seven bits of each character; see `as_text` in packing.py. */
function bytesOfText(text) {
  const bytes = new Uint8Array(Math.floor((text.length * 7) / 8));
  let [buffer, bits, at] = [0, 0, 0];
  for (let i = 0; i < text.length; i++) {
    buffer = ((buffer << 7) | (text.charCodeAt(i) & 127)) & 0x7fff;
    bits += 7;
    if (bits >= 8) {
      bits -= 8;
      bytes[at++] = buffer >> bits;
    }
  }
  return bytes;
}

async function inflated(text, byteCount) {
  const bytes = bytesOfText(text).subarray(0, byteCount);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Unpacks every stored map once; they stay as bytes until they are shown. */
async function unpack() {
  const content = document.getElementById("content");
  const text = content.textContent;
  const work = [];
  for (const chain of data.chains) {
    chain.blockedCells = chain.blocked ? Uint8Array.from(atob(chain.blocked), (one) => one.charCodeAt(0)) : null;
    for (const layer of chain.layers) {
      for (const head of layer.heads) {
        const [start, length, byteCount] = head.content;
        work.push(inflated(text.slice(start, start + length), byteCount).then((bytes) => (head.bytes = bytes)));
      }
    }
  }
  await Promise.all(work);
  content.remove();
}

/** The integers of a stored map, times its step. */
function numbersAt(bytes, start, count, { nonzero, step }) {
  const low = start + Math.ceil(count / 8);
  const high = low + nonzero;
  const numbers = new Float32Array(count);
  for (let i = 0, at = 0; i < count; i++) {
    if ((bytes[start + (i >> 3)] >> (7 - (i & 7))) & 1) {
      numbers[i] = (bytes[low + at] + 256 * bytes[high + at] - 32768) * step;
      at++;
    }
  }
  return [numbers, high + nonzero];
}

function storedMap(chain, head, name) {
  const [queries, keys] = [chain.queries.length, chain.keys.length];
  let start = 0;
  for (const [stored, how] of Object.entries(head.maps)) {
    const count = how.rank ? how.rank * (queries + keys) : queries * keys;
    if (stored !== name) {
      start += Math.ceil(count / 8) + 2 * how.nonzero;
      continue;
    }
    const [numbers] = numbersAt(head.bytes, start, count, how);
    return how.rank ? product(numbers, how.rank, queries, keys) : numbers;
  }
  return null;
}

/** Of two factors, (rank, query) and (rank, key). */
function product(factors, rank, queries, keys) {
  const found = new Float32Array(queries * keys);
  const right = factors.subarray(rank * queries);
  for (let query = 0; query < queries; query++) {
    const row = new Float64Array(keys);
    for (let i = 0; i < rank; i++) {
      const [left, from] = [factors[i * queries + query], i * keys];
      for (let key = 0; key < keys; key++) row[key] += left * right[from + key];
    }
    found.set(row, query * keys);
  }
  return found;
}

function softmax(logits, chain) {
  const [queries, keys] = [chain.queries.length, chain.keys.length];
  const found = new Float32Array(logits.length);
  for (let from = 0; from < queries * keys; from += keys) {
    let [most, sum] = [-Infinity, 0];
    for (let at = from; at < from + keys; at++) if (!chain.blockedCells?.[at]) most = Math.max(most, logits[at]);
    for (let at = from; at < from + keys; at++) if (!chain.blockedCells?.[at]) sum += found[at] = Math.exp(logits[at] - most);
    for (let at = from; at < from + keys && sum; at++) found[at] /= sum;
  }
  return found;
}

const combine = (maps, ofValues) => maps[0].map((_, at) => ofValues(maps.map((map) => map[at])));
const minus = ([one, other]) => one - other;
const total = (values) => values.reduce((sum, value) => sum + value, 0);

const kept = new Map();
let keptNumbers = 0;

/** All values of a map, (query, key); the head after the last one is the mean of all. Maps used last are kept. */
function mapOf(chainIndex, layerIndex, name, head) {
  const id = `${chainIndex} ${layerIndex} ${name} ${head}`;
  let values = kept.get(id);
  if (values) kept.delete(id);
  else {
    values = computedMap(chainIndex, layerIndex, name, head);
    keptNumbers += values.length;
    while (keptNumbers > MOST_KEPT_NUMBERS && kept.size) {
      const [oldest, old] = kept.entries().next().value;
      kept.delete(oldest);
      keptNumbers -= old.length;
    }
  }
  kept.set(id, values);
  return values;
}

function computedMap(chainIndex, layerIndex, name, head) {
  const chain = data.chains[chainIndex];
  const layer = chain.layers[layerIndex];
  const own = (other) => mapOf(chainIndex, layerIndex, other, head);
  if (head === data.heads.length) {
    const sum = new Float32Array(chain.queries.length * chain.keys.length);
    for (let each = 0; each < head; each++) {
      const values = mapOf(chainIndex, layerIndex, name, each);
      for (let at = 0; at < sum.length; at++) sum[at] += values[at] / head;
    }
    return sum;
  }
  const stored = storedMap(chain, layer.heads[head], name);
  if (stored) return stored;
  const nothing = () => new Float32Array(chain.queries.length * chain.keys.length);
  const before = chain.layers[layerIndex - 1];
  return {
    scores: nothing,
    convolution: nothing,
    previous: () => {
      const weight = layer.weights.previous[head];
      if (before?.number !== layer.number - 1 || !weight) return nothing();
      return mapOf(chainIndex, layerIndex - 1, "evolved", head).map((value) => weight * value);
    },
    evolved: () => {
      const [values, previous, convolution] = [own("scores").slice(), own("previous"), own("convolution")];
      for (let at = 0; at < values.length; at++) values[at] += previous[at] + convolution[at];
      return values;
    },
    attention: () => softmax(own("evolved"), chain),
    vanilla: () => own("scores"),
    "vanilla attention": () => softmax(own("vanilla"), chain),
    difference: () => combine([own("evolved"), own("vanilla")], minus),
    "attention difference": () => combine([own("attention"), own("vanilla attention")], minus),
  }[name]();
}

/** The largest absolute value of a map in some rows and columns, without masked cells. */
function largestOf(values, chain, rows, columns) {
  let most = 0;
  for (const query of rows) {
    for (const key of columns) {
      const at = query * chain.keys.length + key;
      if (!chain.blockedCells?.[at]) most = Math.max(most, Math.abs(values[at]));
    }
  }
  return most;
}

/** Computes the maps that others are made of while nothing else is to do, so that no layer is waited for. */
function prepare() {
  const work = [];
  data.chains.forEach((chain, chainIndex) => {
    const size = chain.queries.length * chain.keys.length * chain.layers.length * data.heads.length;
    if (size > MOST_KEPT_NUMBERS / 4) return;
    data.heads.forEach((_, head) => {
      const names = head === 0 && data.hasVanilla ? ["evolved", "vanilla"] : ["evolved"];
      chain.layers.forEach((_, layer) => names.forEach((name) => work.push([chainIndex, layer, name, head])));
    });
  });
  // Those of the first head at once, as long as nobody waits long.
  const start = performance.now();
  while (work.length && work[0][3] === 0 && performance.now() - start < 500) mapOf(...work.shift());
  const step = (deadline) => {
    while (work.length && deadline.timeRemaining() > 8) mapOf(...work.shift());
    if (work.length) requestIdleCallback(step);
  };
  if (window.requestIdleCallback) requestIdleCallback(step);
}
