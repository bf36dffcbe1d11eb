"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
// The second layer is the first one whose map has several parts.
const state = { chain: 0, layer: 1, head: 0, part: "evolved", query: 0, key: 0 };
const PICTURE_SIDE = 340; // pixels
const SMALLEST_NAMED_CELL = 11; // pixels; below this no name is legible

const currentChain = () => data.chains[state.chain];
const currentLayer = () => currentChain().layers[state.layer];
const partNamed = (name) => data.parts.find((part) => part.name === name);
const vanillaName = (part) => (part.isProbability ? "vanilla attention" : "vanilla");
const showsImage = () => Boolean(currentChain().grid) && byId("view").value === "image";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function format(value) {
  return String(Number(value.toPrecision(4)));
}

// Values

const unpacked = new Map();

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** The map of one head: a function of query and key. A map that is not stored is 0 everywhere. */
function valuesOf(chain, layer, name, head) {
  const packed = layer.maps[name];
  if (!packed) return () => 0;
  if (!unpacked.has(packed)) {
    const bytes = new DataView(bytesOf(packed.integers).buffer);
    unpacked.set(packed, Int16Array.from({ length: bytes.byteLength / 2 }, (_, i) => bytes.getInt16(2 * i, true)));
  }
  const [integers, scale] = [unpacked.get(packed), packed.scales[head]];
  const [queries, keys] = [chain.queries.length, chain.keys.length];
  return (query, key) => integers[(head * queries + query) * keys + key] * scale;
}

const valuesNow = (name) => valuesOf(currentChain(), currentLayer(), name, state.head);

function largest(layer, name, head) {
  return layer.maps[name] ? layer.maps[name].scales[head] * 32767 : 0;
}

/** The value at which the colours of a map are strongest. */
function limitOf(part, mapName) {
  const names = data.parts.filter((other) => other.isProbability === part.isProbability).map((other) => other.name);
  names.push(vanillaName(part));
  const values = {
    map: () => [largest(currentLayer(), mapName, state.head)],
    layer: () => names.map((name) => largest(currentLayer(), name, state.head)),
    chain: () =>
      currentChain().layers.flatMap((layer) =>
        names.flatMap((name) => data.heads.map((_, head) => largest(layer, name, head))),
      ),
  }[byId("scale").value]();
  return Math.max(...values) || 1;
}

const blockedCells = new Map();

function isBlocked(chain, query, key) {
  if (!chain.blocked) return false;
  if (!blockedCells.has(chain)) blockedCells.set(chain, bytesOf(chain.blocked));
  return blockedCells.get(chain)[query * chain.keys.length + key] === 1;
}

// Colours

/** From a share of the limit, -1 to 1 or 0 to 1, to red, green and blue. */
function colorOf(part, share) {
  const stops = part.colors.map((color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)));
  const place = (part.isProbability ? share : (share + 1) / 2) * (stops.length - 1);
  const below = Math.min(Math.max(Math.floor(place), 0), stops.length - 2);
  const weight = Math.min(Math.max(place - below, 0), 1);
  return stops[below].map((value, i) => Math.round(value + weight * (stops[below + 1][i] - value)));
}

/** 256 colours, since a map has many cells. */
const tables = new Map();

function tableOf(part) {
  if (!tables.has(part)) {
    const shares = Array.from({ length: 256 }, (_, i) => (part.isProbability ? i / 255 : i / 127.5 - 1));
    tables.set(part, shares.map((share) => colorOf(part, share)));
  }
  return tables.get(part);
}

function tableIndex(part, value, limit) {
  const share = Math.min(Math.max(value / limit, -1), 1);
  return Math.round(part.isProbability ? Math.max(share, 0) * 255 : (share + 1) * 127.5);
}

/** One pixel for each cell; masked cells stay transparent. */
function paintCells(canvas, part, values, limit) {
  const chain = currentChain();
  const [rows, columns] = [chain.queries.length, chain.keys.length];
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  const table = tableOf(part);
  for (let query = 0; query < rows; query++) {
    for (let key = 0; key < columns; key++) {
      if (isBlocked(chain, query, key)) continue;
      const at = 4 * (query * columns + key);
      pixels.data.set(table[tableIndex(part, values(query, key), limit)], at);
      pixels.data[at + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
}

function colorScale(part, limit) {
  const bar = element("div", { className: "bar" });
  bar.style.background = `linear-gradient(to right, ${part.colors.join(", ")})`;
  const shares = part.isProbability ? [0, 0.5, 1] : [-1, -0.5, 0, 0.5, 1];
  const numbers = shares.map((share) => element("span", { textContent: format(Number((share * limit).toPrecision(3))) }));
  return element(
    "div",
    { className: "colours" },
    bar,
    element("div", { className: "numbers" }, ...numbers),
    element("span", { className: "unit", textContent: part.unit }),
  );
}

// Choosing a pair

function choose(query, key) {
  const chain = currentChain();
  state.query = Math.min(Math.max(query, 0), chain.queries.length - 1);
  state.key = Math.min(Math.max(key, 0), chain.keys.length - 1);
  for (const map of shownMaps) map.mark();
  byId("query").value = state.query;
  showPair();
}

/** The value under the pointer, beside it. */
function showTip(event, name) {
  const chain = currentChain();
  const [query, key] = [chain.queries[state.query], chain.keys[state.key]];
  const value = isBlocked(chain, state.query, state.key) ? "masked" : format(valuesNow(name)(state.query, state.key));
  const names = [query, " → ", key].map((text) => element("bdi", { textContent: text }));
  byId("tip").replaceChildren(...names, element("b", { textContent: value }));
  byId("tip").hidden = false;
  const { offsetWidth, offsetHeight } = byId("tip");
  byId("tip").style.left = `${Math.max(4, Math.min(event.clientX + 16, innerWidth - offsetWidth - 20))}px`;
  const below = event.clientY + 20;
  byId("tip").style.top = `${below + offsetHeight > innerHeight ? event.clientY - offsetHeight - 12 : below}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** A whole map, with the names of its rows and columns. */
class Matrix {
  constructor(part, name, limit, label) {
    const chain = currentChain();
    this.canvas = element("canvas", { tabIndex: 0, className: "map" });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys choose a pair; its values are read below.`);
    paintCells(this.canvas, part, valuesNow(name), limit);
    this.cell = element("div", { className: "cell" });
    this.seconds = [chain.secondQuery, chain.secondKey].map((start) =>
      start === null ? null : element("div", { className: "second" }),
    );
    this.board = element("div", { className: "board" }, this.canvas, ...this.seconds.filter(Boolean), this.cell);
    const names = (tokens) => tokens.map((token) => element("span", { textContent: token, title: token, dir: "auto" }));
    this.columns = element("div", { className: "columns labels" }, ...names(chain.keys));
    this.rows = element("div", { className: "rows labels" }, ...names(chain.queries));
    this.corner = element("div", { className: "corner" });
    this.scroll = element("div", { className: "scroll" }, this.corner, this.columns, this.rows, this.board);
    const pointed = (event) => {
      const box = this.canvas.getBoundingClientRect();
      choose(
        Math.floor(((event.clientY - box.top) / box.height) * chain.queries.length),
        Math.floor(((event.clientX - box.left) / box.width) * chain.keys.length),
      );
      showTip(event, name);
    };
    this.canvas.addEventListener("pointermove", pointed);
    this.canvas.addEventListener("pointerleave", hideTip);
    this.canvas.addEventListener("pointerdown", pointed);
    this.canvas.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const [down, right] = ARROWS[event.key];
      choose(state.query + down, state.key + right);
      this.cell.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    this.scroll.addEventListener("scroll", () => {
      for (const other of shownMaps) {
        if (other !== this && other.scroll) {
          [other.scroll.scrollLeft, other.scroll.scrollTop] = [this.scroll.scrollLeft, this.scroll.scrollTop];
        }
      }
    });
    this.node = element(
      "div",
      {},
      element("span", { className: "axis rows", textContent: `rows: ${chain.queryAxis}` }),
      element("span", { className: "axis columns", textContent: `columns: ${chain.keyAxis}` }),
      this.scroll,
    );
    this.resize();
  }

  resize() {
    const chain = currentChain();
    const size = Number(byId("zoom").value);
    this.size = size;
    this.canvas.style.width = `${chain.keys.length * size}px`;
    this.canvas.style.height = `${chain.queries.length * size}px`;
    const isNamed = size >= SMALLEST_NAMED_CELL && !chain.grid;
    const font = `${Math.min(13, size - 1)}px/${size}px system-ui, sans-serif`;
    for (const labels of [this.rows, this.columns]) labels.hidden = !isNamed;
    this.corner.hidden = !isNamed;
    this.scroll.style.gridTemplate = isNamed ? "" : "max-content / max-content";
    for (const label of this.rows.children) Object.assign(label.style, { font, height: `${size}px` });
    for (const label of this.columns.children) Object.assign(label.style, { font, width: `${size}px` });
    const [secondRow, secondColumn] = this.seconds;
    const whole = { left: 0, top: 0, width: this.canvas.style.width, height: this.canvas.style.height };
    if (secondRow) Object.assign(secondRow.style, whole, { top: `${chain.secondQuery * size - 1}px`, height: "2px" });
    if (secondColumn) Object.assign(secondColumn.style, whole, { left: `${chain.secondKey * size - 1}px`, width: "2px" });
    this.mark();
  }

  mark() {
    const { query, key } = state;
    const size = `${Math.max(this.size, 5)}px`;
    Object.assign(this.cell.style, { left: `${key * this.size}px`, top: `${query * this.size}px`, width: size, height: size });
    for (const [labels, chosen] of [[this.rows, query], [this.columns, key]]) {
      labels.querySelector(".chosen")?.classList.remove("chosen");
      labels.children[chosen]?.classList.add("chosen");
    }
  }
}

/** One row of a map, laid out as the parts of the image; or the image itself, if there is no part to show. */
class Picture {
  constructor(part, name, limit, label) {
    Object.assign(this, { part, limit, values: part && valuesNow(name) });
    const chain = currentChain();
    [this.gridRows, this.gridColumns] = chain.grid;
    this.leading = chain.keys.length - this.gridRows * this.gridColumns;
    this.size = Math.max(2, Math.floor(PICTURE_SIDE / Math.max(this.gridRows, this.gridColumns)));
    this.leadingSize = Math.min(Math.max(this.size, 18), 28);
    this.top = this.leading ? this.leadingSize + 6 : 0;
    this.canvas = element("canvas", {
      tabIndex: 0,
      className: part ? "map" : "seen",
      width: this.gridColumns * this.size,
      height: this.top + this.gridRows * this.size,
    });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys choose ${part ? "the key" : "the query"}.`);
    const pointed = (event, isPressed) => {
      const box = this.canvas.getBoundingClientRect();
      const scale = this.canvas.width / box.width;
      const index = this.indexAt((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
      if (index === null) return;
      if (isPressed) choosePictureQuery(index);
      else if (part) choose(state.query, index);
      if (part) showTip(event, name);
    };
    this.canvas.addEventListener("pointermove", (event) => pointed(event, false));
    this.canvas.addEventListener("pointerleave", hideTip);
    this.canvas.addEventListener("pointerdown", (event) => pointed(event, true));
    this.canvas.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const [down, right] = ARROWS[event.key];
      const moved = (index) => index + right + down * this.gridColumns;
      if (part) choose(state.query, moved(state.key));
      else choosePictureQuery(Math.min(Math.max(moved(state.query), 0), chain.queries.length - 1));
    });
    this.node = element("div", { className: "picture" }, this.canvas);
    this.mark();
  }

  /** Left and upper end of a part of the image, or of a token before them. */
  placeOf(index) {
    const patch = index - this.leading;
    if (patch < 0) return [index * this.leadingSize, 0];
    return [(patch % this.gridColumns) * this.size, this.top + Math.floor(patch / this.gridColumns) * this.size];
  }

  indexAt(x, y) {
    if (y < this.top) {
      const index = Math.floor(x / this.leadingSize);
      return index < this.leading ? index : null;
    }
    const [row, column] = [Math.floor((y - this.top) / this.size), Math.floor(x / this.size)];
    const isInside = row < this.gridRows && column >= 0 && column < this.gridColumns;
    return isInside ? this.leading + row * this.gridColumns + column : null;
  }

  mark() {
    const context = this.canvas.getContext("2d");
    const chain = currentChain();
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const sideOf = (index) => (index < this.leading ? this.leadingSize : this.size);
    if (this.leading) {
      context.fillStyle = getComputedStyle(document.body).color;
      context.font = "13px system-ui, sans-serif";
      context.textBaseline = "middle";
      const [x] = this.placeOf(this.leading - 1);
      context.fillText(chain.keys.slice(0, this.leading).join(", "), x + sideOf(0) + 6, sideOf(0) / 2);
    }
    if (this.part) {
      const table = tableOf(this.part);
      chain.keys.forEach((_, key) => {
        const [red, green, blue] = table[tableIndex(this.part, this.values(state.query, key), this.limit)];
        context.fillStyle = `rgb(${red}, ${green}, ${blue})`;
        context.fillRect(...this.placeOf(key), sideOf(key), sideOf(key));
      });
    } else {
      context.imageSmoothingEnabled = false;
      if (picture.complete) {
        context.drawImage(picture, 0, this.top, this.canvas.width, this.canvas.height - this.top);
      }
    }
    for (const [index, colors] of [[state.key, ["#111111", "#ffffff"]], [state.query, ["#5c3d00", "#ffb000"]]]) {
      const [x, y] = this.placeOf(index);
      const side = sideOf(index);
      colors.forEach((color, i) => {
        context.strokeStyle = color;
        context.lineWidth = i === 0 ? 4 : 2;
        context.strokeRect(x + 1.5, y + 1.5, side - 3, side - 3);
      });
    }
  }
}

function choosePictureQuery(index) {
  state.query = index;
  choose(index, state.key);
  drawParts();
}

// Drawing

const picture = new Image();
let shownMaps = [];

function drawMaps() {
  const [chain, layer, part] = [currentChain(), currentLayer(), partNamed(state.part)];
  const where = `${chain.title}, layer ${layer.number}, head ${data.heads[state.head]}`;
  const maps = [{ title: part.title, formula: layer.formulas[part.name][state.head], name: part.name }];
  if (data.hasVanilla) {
    const title = `vanilla ${part.isProbability ? "attention" : "scores"}, same weights`;
    maps.push({ title, formula: layer.vanillaFormulas[part.name], name: vanillaName(part) });
  }
  for (const map of maps) map.limit = limitOf(part, map.name);
  const View = showsImage() ? Picture : Matrix;
  shownMaps = maps.map((map) => new View(part, map.name, map.limit, `${map.title}, ${where}`));
  const figures = maps.map((map, i) =>
    element(
      "figure",
      { id: i === 0 ? "shown" : "vanilla" },
      element(
        "figcaption",
        {},
        element("b", { textContent: map.title[0].toUpperCase() + map.title.slice(1) }),
        element("span", { textContent: `${map.formula}; ${where}` }),
      ),
      shownMaps[i].node,
      colorScale(part, map.limit),
    ),
  );
  if (showsImage()) {
    const seen = new Picture(null, null, null, "What the model saw");
    const note = "orange: the query, click to choose another; white: the key";
    const caption = element("figcaption", {}, element("b", { textContent: "What the model saw" }), element("span", { textContent: note }));
    figures.unshift(element("figure", { id: "seen" }, caption, seen.node));
    shownMaps.push(seen);
  }
  byId("maps").replaceChildren(...figures);
  for (const map of shownMaps) map.mark();
}

const SIGNS = { previous: "+", convolution: "+", evolved: "=", attention: "→" };
const EXPLANATIONS = {
  scores: "How well the query and the key go together in this layer, as far as it reaches the evolved map.",
  previous: "What the residual hands down from the map of the layer before.",
  convolution: "What the convolution adds: it looks at neighbouring pairs, in all heads.",
  evolved: "The sum of the three parts: this layer's attention before mask and softmax, which goes on to the next layer.",
  attention: "The softmax of the evolved map over the keys of each query: how much each key counts.",
};
const thumbnails = new Map();

function makeParts() {
  for (const part of data.parts) {
    const input = element("input", { type: "radio", name: "part", value: part.name, checked: part.name === state.part });
    input.addEventListener("change", () => {
      state.part = part.name;
      drawMaps();
      showPair();
    });
    const thumbnail = {
      canvas: element("canvas"),
      formula: element("small", { className: "formula" }),
      range: element("small", { className: "range" }),
    };
    thumbnails.set(part.name, thumbnail);
    if (SIGNS[part.name]) byId("parts").append(element("span", { className: "sign", textContent: SIGNS[part.name] }));
    const title = element("span", { className: "title", textContent: part.title });
    const label = element("label", {}, input, title, thumbnail.canvas, thumbnail.formula, thumbnail.range);
    byId("parts").append(label);
  }
}

function drawParts() {
  for (const part of data.parts) {
    const { canvas, formula, range } = thumbnails.get(part.name);
    paintCells(canvas, part, valuesNow(part.name), limitOf(part, part.name));
    canvas.style.imageRendering = currentChain().keys.length > 84 ? "auto" : "pixelated";
    formula.textContent = currentLayer().formulas[part.name][state.head];
    const most = format(Number(largest(currentLayer(), part.name, state.head).toPrecision(3)));
    range.textContent = part.isProbability ? `up to ${most}` : `up to ±${most}`;
  }
}

function showPair() {
  const [chain, layer] = [currentChain(), currentLayer()];
  byId("pair-query").textContent = chain.queries[state.query];
  byId("pair-key").textContent = chain.keys[state.key];
  byId("pair-places").textContent = chain.grid ? "" : `(row ${state.query + 1}, column ${state.key + 1})`;
  byId("explanation").textContent = EXPLANATIONS[state.part];
  const isMasked = isBlocked(chain, state.query, state.key);
  const value = (name) => valuesNow(name)(state.query, state.key);
  const columns = data.parts.map((part) => {
    const weight = layer.weights[part.name][state.head];
    const how = weight && weight !== 1 ? `${format(weight)} × ${format(value(part.name) / weight)}` : "";
    return { name: part.name, title: part.title, formula: layer.formulas[part.name][state.head], how };
  });
  for (const part of data.hasVanilla ? [partNamed("evolved"), partNamed("attention")] : []) {
    const title = `vanilla ${part.isProbability ? "attention" : "scores"}`;
    columns.push({ name: vanillaName(part), title, formula: layer.vanillaFormulas[part.name], how: "" });
  }
  const cells = (tag, contentOf) =>
    columns.map((column) => {
      const cell = element(tag, {}, ...contentOf(column));
      cell.classList.toggle("chosen", column.name === state.part);
      cell.dataset.map = column.name;
      return cell;
    });
  const shown = (column) => (isMasked ? "masked" : format(value(column.name)));
  byId("pair-titles").replaceChildren(...cells("th", ({ title }) => [title]));
  byId("pair-formulas").replaceChildren(...cells("td", ({ formula }) => [formula]));
  byId("pair-values").replaceChildren(
    ...cells("td", (column) => [
      element("b", { className: "value", textContent: shown(column) }),
      element("small", { textContent: column.how && !isMasked ? ` = ${column.how}` : "" }),
    ]),
  );
}

function draw() {
  byId("layer-shown").textContent = `${currentLayer().number}`;
  byId("head-shown").textContent = `${data.heads[state.head]}`;
  byId("layer").setAttribute("aria-valuetext", `layer ${currentLayer().number}`);
  byId("head").setAttribute("aria-valuetext", `head ${data.heads[state.head]}`);
  byId("view-label").hidden = !currentChain().grid;
  byId("query-label").hidden = !showsImage();
  byId("zoom-label").hidden = showsImage();
  drawParts();
  drawMaps();
  showPair();
}

function enterChain() {
  const chain = currentChain();
  byId("layer").max = chain.layers.length - 1;
  state.layer = Math.min(state.layer, chain.layers.length - 1);
  byId("layer").value = state.layer;
  state.query = Math.min(state.query, chain.queries.length - 1);
  state.key = Math.min(state.key, chain.keys.length - 1);
  byId("query").replaceChildren(...chain.queries.map((name, index) => element("option", { value: index, textContent: name })));
  byId("query").value = state.query;
  const longest = Math.max(chain.queries.length, chain.keys.length);
  byId("zoom").value = chain.grid ? Math.max(2, Math.floor(500 / longest)) : longest <= 16 ? 28 : longest <= 30 ? 20 : 14;
  draw();
}

function begin() {
  const facts = { model: data.model, ...data.texts };
  for (const [name, text] of Object.entries(facts)) {
    byId("about").append(element("dt", { textContent: name }), element("dd", { textContent: text, dir: "auto" }));
  }
  data.chains.forEach((chain, index) => byId("chain").append(element("option", { value: index, textContent: chain.title })));
  byId("chain-label").hidden = data.chains.length === 1;
  byId("head").max = data.heads.length - 1;
  const numbers = { chain: enterChain, layer: draw, head: draw };
  for (const [name, then] of Object.entries(numbers)) {
    byId(name).addEventListener("input", () => {
      state[name] = Number(byId(name).value);
      then();
    });
  }
  byId("query").addEventListener("input", () => choosePictureQuery(Number(byId("query").value)));
  for (const name of ["scale", "view"]) byId(name).addEventListener("input", draw);
  byId("zoom").addEventListener("input", () => shownMaps.forEach((map) => map.resize?.()));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  makeParts();
  byId("head").value = 0;
  enterChain();
  if (data.image) {
    picture.onload = () => shownMaps.forEach((map) => map.mark());
    picture.src = data.image;
  }
}

begin();
