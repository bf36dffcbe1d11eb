// State, names and colours.

// The second layer is the first one whose map has several parts.
const state = { chain: 0, layer: 1, head: 0, part: "evolved", query: 0, key: 0 };
const PICTURE_SIDE = 340; // pixels
const SMALLEST_NAMED_CELL = 11; // pixels; below this no name is legible
const LOG_DECADES = 4; // of the logarithmic colours

const currentChain = () => data.chains[state.chain];
const currentLayer = () => currentChain().layers[state.layer];
const isMean = () => state.head === data.heads.length;
const headName = (head) => (head === data.heads.length ? "mean of the heads" : `head ${data.heads[head]}`);
const partNamed = (name) => data.parts.find((part) => part.name === name);
const vanillaName = (part) => (part.isProbability ? "vanilla attention" : "vanilla");
const differenceName = (part) => (part.isProbability ? "attention difference" : "difference");
const showsImage = () => Boolean(currentChain().grid) && byId("view").value === "image" && byId("mode").value === "one";
const valuesNow = (name, head = state.head) => mapOf(state.chain, state.layer, name, head);
const valueAt = (name) => valuesNow(name)[state.query * currentChain().keys.length + state.key];
const isBlocked = (chain, query, key) => chain.blockedCells?.[query * chain.keys.length + key] === 1;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function format(value) {
  return String(Number(value.toPrecision(4)));
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** The rows or columns that are shown. */
function shownOf(chain, side) {
  const hidden = byId("special").checked ? chain[side === "queries" ? "specialQueries" : "specialKeys"] : [];
  const every = chain[side].map((_, index) => index);
  const rest = every.filter((index) => !hidden.includes(index));
  return rest.length ? rest : every;
}

/** How the values of a map become colours: a map by name has logits, probabilities, or their differences. */
function paletteOf(name) {
  const isLogit = LOGIT_NAMES.includes(name);
  const isSigned = isLogit || name === "attention difference";
  const like = data.parts.find((part) => part.isProbability !== isSigned);
  const unit = isLogit ? like.unit : isSigned ? "difference of probabilities" : like.unit;
  return { colors: like.colors, isSigned, unit, curve: isLogit ? "linear" : byId("curve").value };
}

/** From a share of the limit, 0 to 1, to a place among the colours. */
const CURVES = {
  linear: { place: (share) => share, share: (place) => place },
  root: { place: Math.sqrt, share: (place) => place * place },
  log: {
    place: (share) => Math.max(0, 1 + Math.log10(Math.max(share, 1e-30)) / LOG_DECADES),
    share: (place) => (place ? 10 ** (LOG_DECADES * (place - 1)) : 0),
  },
};

const limits = new Map();

/** The value at which the colours of a map are strongest. */
function limitOf(name, head = state.head) {
  const id = [state.chain, state.layer, head, name, byId("scale").value, byId("special").checked].join(" ");
  if (!limits.has(id)) limits.set(id, computedLimit(name, head));
  return limits.get(id);
}

function computedLimit(name, head) {
  const [chain, kind] = [currentChain(), LOGIT_NAMES.includes(name) ? "logit" : "probability"];
  const [rows, columns] = [shownOf(chain, "queries"), shownOf(chain, "keys")];
  const largest = (other) => largestOf(valuesNow(other, head), chain, rows, columns);
  if (name.endsWith("difference") || byId("scale").value === "map") return largest(name) || 1;
  if (byId("scale").value === "chain") {
    return Math.max(...chain.layers.map((layer) => layer.largest[kind][byId("special").checked ? 1 : 0])) || 1;
  }
  const names = kind === "logit" ? LOGIT_NAMES.slice(0, 4) : ["attention"];
  if (data.hasVanilla) names.push(kind === "logit" ? "vanilla" : "vanilla attention");
  const most = Math.max(...names.map(largest)) || 1;
  for (const other of names) {
    limits.set([state.chain, state.layer, head, other, "layer", byId("special").checked].join(" "), most);
  }
  return most;
}

const tables = new Map();

/** 512 colours, from the lowest to the highest place, since a map has many cells. */
function tableOf(colors) {
  if (!tables.has(colors)) {
    const stops = colors.map((color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
    const colorAt = (place) => {
      const below = Math.min(Math.floor(place), stops.length - 2);
      return stops[below].map((value, i) => Math.round(value + (place - below) * (stops[below + 1][i] - value)));
    };
    tables.set(colors, Array.from({ length: 512 }, (_, i) => colorAt((i / 511) * (stops.length - 1))));
  }
  return tables.get(colors);
}

/** From a value to the place of its colour in the table. */
function colorPlace(name, limit) {
  const { isSigned, curve } = paletteOf(name);
  const { place } = CURVES[curve];
  return (value) => {
    const at = place(Math.min(Math.abs(value) / limit, 1));
    return Math.round(511 * (isSigned ? (1 + Math.sign(value) * at) / 2 : value > 0 ? at : 0));
  };
}

/** One pixel for each cell, or for each so many if `most` are enough; masked cells stay transparent. */
function paintCells(canvas, name, limit, head = state.head, most = Infinity) {
  const [chain, values, blocked] = [currentChain(), valuesNow(name, head), currentChain().blockedCells];
  const some = (all) => all.filter((_, i) => i % Math.max(1, Math.ceil(all.length / most)) === 0);
  const [rows, columns] = [some(shownOf(chain, "queries")), some(shownOf(chain, "keys"))];
  [canvas.width, canvas.height] = [columns.length, rows.length];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns.length, rows.length);
  const whole = new DataView(pixels.data.buffer);
  // Red, green, blue and opaque in one number, since a map has many cells.
  const table = Uint32Array.from(tableOf(paletteOf(name).colors), ([red, green, blue]) => ((red << 24) | (green << 16) | (blue << 8) | 255) >>> 0);
  const placeOf = colorPlace(name, limit);
  for (let row = 0, at = 0; row < rows.length; row++) {
    const from = rows[row] * chain.keys.length;
    for (let column = 0; column < columns.length; column++, at += 4) {
      const cell = from + columns[column];
      if (!blocked || !blocked[cell]) whole.setUint32(at, table[placeOf(values[cell])]);
    }
  }
  context.putImageData(pixels, 0, 0);
}

/** The values at evenly spaced places of the colours. */
function scaleNumbers(name, limit) {
  const { isSigned, curve } = paletteOf(name);
  const places = isSigned ? [-1, -0.5, 0, 0.5, 1] : [0, 0.5, 1];
  return places.map((place) => {
    const value = Math.sign(place) * CURVES[curve].share(Math.abs(place)) * limit;
    return format(Number(value.toPrecision(3)));
  });
}

function colorScale(name, limit) {
  const { colors, unit, curve } = paletteOf(name);
  const bar = element("div", { className: "bar" });
  bar.style.background = `linear-gradient(to right, ${colors.join(", ")})`;
  const numbers = scaleNumbers(name, limit).map((number) => element("span", { textContent: number }));
  const how = { linear: "", root: ", square-root colours", log: `, logarithmic colours` }[curve];
  return element(
    "div",
    { className: "colours" },
    bar,
    element("div", { className: "numbers" }, ...numbers),
    element("span", { className: "unit", textContent: unit + how }),
  );
}
