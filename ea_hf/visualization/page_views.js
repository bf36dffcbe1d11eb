// Maps of one head, and choosing a cell in them.

const picture = new Image();
let shownMaps = [];

// Choosing a pair

function choose(query, key) {
  const chain = currentChain();
  state.query = Math.min(Math.max(query, 0), chain.queries.length - 1);
  state.key = Math.min(Math.max(key, 0), chain.keys.length - 1);
  for (const map of shownMaps) map.mark();
  byId("query").value = state.query;
  showPair();
  rememberView();
}

/** The value under the pointer, beside it. */
function showTip(event, name) {
  const chain = currentChain();
  const [query, key] = [chain.queries[state.query], chain.keys[state.key]];
  const value = isBlocked(chain, state.query, state.key) ? "masked" : format(valueAt(name));
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
  constructor(name, limit, label) {
    const chain = currentChain();
    [this.name, this.limit] = [name, limit];
    [this.queries, this.keys] = [shownOf(chain, "queries"), shownOf(chain, "keys")];
    this.canvas = element("canvas", { tabIndex: 0, className: "map" });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys choose a pair; its values are read beside it.`);
    paintCells(this.canvas, name, limit);
    this.cell = element("div", { className: "cell" });
    // Where the second sentence begins, among what is shown.
    this.starts = [[chain.secondQuery, this.queries], [chain.secondKey, this.keys]].map(([start, shown]) =>
      start === null ? -1 : shown.findIndex((index) => index >= start),
    );
    this.seconds = this.starts.map((start) => (start < 0 ? null : element("div", { className: "second" })));
    this.board = element("div", { className: "board" }, this.canvas, ...this.seconds.filter(Boolean), this.cell);
    const names = (tokens) => tokens.map((token) => element("span", { textContent: token, title: token, dir: "auto" }));
    this.columns = element("div", { className: "columns labels" }, ...names(this.keys.map((key) => chain.keys[key])));
    this.rows = element("div", { className: "rows labels" }, ...names(this.queries.map((query) => chain.queries[query])));
    this.corner = element("div", { className: "corner" });
    this.scroll = element("div", { className: "scroll" }, this.corner, this.columns, this.rows, this.board);
    const pointed = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const indexAt = (share, shown) => shown[Math.min(Math.max(Math.floor(share * shown.length), 0), shown.length - 1)];
      choose(
        indexAt((event.clientY - box.top) / box.height, this.queries),
        indexAt((event.clientX - box.left) / box.width, this.keys),
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
      const moved = (index, by, shown) => shown[Math.min(Math.max(shown.indexOf(index) + by, 0), shown.length - 1)];
      choose(moved(state.query, down, this.queries), moved(state.key, right, this.keys));
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
      element(
        "div",
        { className: "axes" },
        element("span", { className: "axis rows", textContent: `rows: ${chain.queryAxis}` }),
        element("span", { className: "axis columns", textContent: `columns: ${chain.keyAxis}` }),
      ),
      this.scroll,
    );
  }

  resize() {
    const chain = currentChain();
    const size = Number(byId("zoom").value);
    this.size = size;
    this.canvas.style.width = `${this.keys.length * size}px`;
    this.canvas.style.height = `${this.queries.length * size}px`;
    const isNamed = size >= SMALLEST_NAMED_CELL && !chain.grid;
    const font = `${Math.min(13, size - 1)}px/${size}px system-ui, sans-serif`;
    for (const labels of [this.rows, this.columns]) labels.hidden = !isNamed;
    this.corner.hidden = !isNamed;
    this.scroll.style.gridTemplate = isNamed ? "" : "max-content / max-content";
    for (const label of this.rows.children) Object.assign(label.style, { font, height: `${size}px` });
    for (const label of this.columns.children) Object.assign(label.style, { font, width: `${size}px` });
    const [secondRow, secondColumn] = this.seconds;
    const whole = { left: 0, top: 0, width: this.canvas.style.width, height: this.canvas.style.height };
    if (secondRow) Object.assign(secondRow.style, whole, { top: `${this.starts[0] * size - 1}px`, height: "2px" });
    if (secondColumn) Object.assign(secondColumn.style, whole, { left: `${this.starts[1] * size - 1}px`, width: "2px" });
    // The names stay where they are when a cell is scrolled into view.
    this.cell.style.scrollMargin = `${this.columns.offsetHeight + 8}px 8px 8px ${this.rows.offsetWidth + 8}px`;
    this.mark();
  }

  mark() {
    const [query, key] = [this.queries.indexOf(state.query), this.keys.indexOf(state.key)];
    const size = `${Math.max(this.size, 5)}px`;
    Object.assign(this.cell.style, { left: `${key * this.size}px`, top: `${query * this.size}px`, width: size, height: size });
    for (const [labels, chosen] of [[this.rows, query], [this.columns, key]]) {
      labels.querySelector(".chosen")?.classList.remove("chosen");
      labels.children[chosen]?.classList.add("chosen");
    }
  }
}

/** As many pixels as let the pictures stand side by side. */
function pictureSide() {
  const count = 2 + (data.hasVanilla && byId("beside").value !== "nothing" ? 1 : 0);
  return Math.min(PICTURE_SIDE, Math.max(208, Math.floor((byId("maps").clientWidth - 24 * count) / count)));
}

/** One row of a map, laid out as the parts of the image; or the image itself, if there is no part to show. */
class Picture {
  constructor(name, limit, label) {
    Object.assign(this, { name, limit, values: name && valuesNow(name) });
    const chain = currentChain();
    [this.gridRows, this.gridColumns] = chain.grid;
    this.leading = chain.keys.length - this.gridRows * this.gridColumns;
    this.size = Math.max(2, Math.floor(pictureSide() / Math.max(this.gridRows, this.gridColumns)));
    this.leadingSize = Math.min(Math.max(this.size, 18), 28);
    this.top = this.leading ? this.leadingSize + 6 : 0;
    this.canvas = element("canvas", {
      tabIndex: 0,
      className: name ? "map" : "seen",
      width: this.gridColumns * this.size,
      height: this.top + this.gridRows * this.size,
    });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys choose ${name ? "the key" : "the query"}.`);
    const pointed = (event, isPressed) => {
      const box = this.canvas.getBoundingClientRect();
      const scale = this.canvas.width / box.width;
      const index = this.indexAt((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
      if (index === null) return;
      if (isPressed) choosePictureQuery(index);
      else if (name) choose(state.query, index);
      if (name) showTip(event, name);
    };
    this.canvas.addEventListener("pointermove", (event) => pointed(event, false));
    this.canvas.addEventListener("pointerleave", hideTip);
    this.canvas.addEventListener("pointerdown", (event) => pointed(event, true));
    this.canvas.addEventListener("keydown", (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const [down, right] = ARROWS[event.key];
      const moved = (index) => index + right + down * this.gridColumns;
      if (name) choose(state.query, moved(state.key));
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
    if (this.name) {
      const [table, placeOf] = [tableOf(paletteOf(this.name).colors), colorPlace(this.name, this.limit)];
      chain.keys.forEach((_, key) => {
        const [red, green, blue] = table[placeOf(this.values[state.query * chain.keys.length + key])];
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
