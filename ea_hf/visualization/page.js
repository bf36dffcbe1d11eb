// The page: its controls, and what they draw.

const PART_SIGNS = { previous: "+", convolution: "+", evolved: "=", attention: "→" };
const EXPLANATIONS = {
  scores: "How well the query and the key go together in this layer, as far as it reaches the evolved map.",
  previous: "What the residual hands down from the map of the layer before.",
  convolution: "What the convolution adds: it looks at neighbouring pairs, in all heads.",
  evolved: "The sum of the three parts: this layer's attention before mask and softmax, which goes on to the next layer.",
  attention: "The softmax of the evolved map over the keys of each query: how much each key counts.",
};
const rows = new Map(); // of the panel of numbers, by map

const formulaOf = (part) => (isMean() ? "mean of the heads" : currentLayer().formulas[part.name][state.head]);
const vanillaFormulaOf = (part) => currentLayer().vanillaFormulas[part.name];
const vanillaTitle = (part) => `vanilla ${part.isProbability ? "attention" : "scores"}`;

/** The maps that are shown of one head. */
function mapsOfHead() {
  const part = partNamed(state.part);
  const maps = [{ id: "shown", title: part.title, formula: formulaOf(part), name: part.name }];
  const [beside, whole] = [byId("beside").value, part.isProbability ? "attention" : "evolved map"];
  if (data.hasVanilla && beside === "vanilla") {
    maps.push({ id: "vanilla", title: `${vanillaTitle(part)}, same weights`, formula: vanillaFormulaOf(part), name: vanillaName(part) });
  }
  if (data.hasVanilla && beside === "difference") {
    const formula = `${part.isProbability ? "P" : "A"} − vanilla ${part.isProbability ? "P" : "S"}`;
    maps.push({ id: "vanilla", title: `${whole} minus vanilla`, formula, name: differenceName(part) });
  }
  return maps;
}

function drawMaps() {
  const [chain, layer] = [currentChain(), currentLayer()];
  const place = `${chain.title}, layer ${layer.number}`;
  byId("maps").classList.toggle("several", byId("mode").value === "heads");
  if (byId("mode").value === "heads") return drawHeads(place);
  const where = `${place}, ${headName(state.head)}`;
  const View = showsImage() ? Picture : Matrix;
  const maps = mapsOfHead();
  shownMaps = maps.map((map) => new View(map.name, limitOf(map.name), `${map.title}, ${where}`));
  const figures = maps.map((map, i) => {
    const note = map.formula === "mean of the heads" ? where : `${map.formula}; ${where}`;
    shownMaps[i].title = `${capital(map.title)}: ${note}`;
    const title = element("b", { textContent: capital(map.title) });
    const caption = element("figcaption", {}, title, element("span", { textContent: note }));
    return element("figure", { id: map.id }, caption, shownMaps[i].node, colorScale(map.name, shownMaps[i].limit));
  });
  if (showsImage()) {
    const seen = new Picture(null, null, "What the model saw");
    seen.title = "What the model saw";
    const note = "orange: the query, click to choose another; white: the key";
    const caption = element("figcaption", {}, element("b", { textContent: seen.title }), element("span", { textContent: note }));
    figures.unshift(element("figure", { id: "seen" }, caption, seen.node));
    shownMaps.push(seen);
  }
  byId("maps").replaceChildren(...figures);
  for (const map of shownMaps) map.resize ? map.resize() : map.mark();
}

/** The chosen part of every head, each on its own scale or on that of its layer; a click shows one head. */
function drawHeads(place) {
  const part = partNamed(state.part);
  const limits = data.heads.map((_, head) => limitOf(part.name, head));
  if (byId("scale").value === "layer") limits.fill(Math.max(...limits));
  shownMaps = [];
  const figures = data.heads.map((_, head) => {
    const canvas = element("canvas");
    paintCells(canvas, part.name, limits[head], head);
    const button = element("button", { type: "button" }, canvas);
    button.setAttribute("aria-label", `Show ${headName(head)}`);
    button.addEventListener("click", () => show({ head }));
    const map = Object.create(Matrix.prototype);
    const [queries, keys] = [shownOf(currentChain(), "queries"), shownOf(currentChain(), "keys")];
    const title = `${capital(part.title)}: ${place}, ${headName(head)}`;
    Object.assign(map, { canvas, queries, keys, head, title, name: part.name, limit: limits[head], mark() {}, resize() {} });
    shownMaps.push(map);
    const caption = element("figcaption", {}, element("b", { textContent: capital(headName(head)) }));
    return element("figure", {}, caption, button, colorScale(part.name, limits[head]));
  });
  byId("maps").replaceChildren(element("p", { textContent: `${capital(part.title)}, ${place}` }), ...figures);
}

/** Shows one head of a layer. */
function show(where) {
  Object.assign(state, where);
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  byId("mode").value = "one";
  draw();
}

// The panel of numbers, where parts are chosen too

function panelRow(name, title, sign, input) {
  const row = { formula: element("small", { className: "formula" }), how: element("small", { className: "how" }) };
  row.value = element("b", { className: "value" });
  row.value.dataset.map = name;
  row.canvas = element("canvas");
  row.canvas.setAttribute("aria-hidden", "true");
  const second = element("span", { className: "second" }, row.formula, " ", row.how);
  row.node = element(input ? "label" : "div", { className: "row" }, element("span", { className: "sign", textContent: sign }));
  row.node.append(...(input ? [input] : []), row.canvas, element("span", { className: "title", textContent: title }), row.value, second);
  rows.set(name, row);
  return row.node;
}

function makePanel() {
  for (const part of data.parts) {
    const input = element("input", { type: "radio", name: "part", value: part.name, checked: part.name === state.part });
    input.addEventListener("change", () => {
      state.part = part.name;
      drawMaps();
      showPair();
      rememberView();
    });
    byId("parts").append(panelRow(part.name, part.title, PART_SIGNS[part.name] ?? "", input));
  }
  for (const part of data.hasVanilla ? [partNamed("evolved"), partNamed("attention")] : []) {
    byId("others").append(panelRow(vanillaName(part), vanillaTitle(part), ""));
  }
}

function drawPanel() {
  for (const [name, { canvas, formula }] of rows) {
    const part = partNamed(name) ?? partNamed(name === "vanilla" ? "evolved" : "attention");
    paintCells(canvas, name, limitOf(name), state.head, 88);
    canvas.style.imageRendering = canvas.width > 44 ? "auto" : "pixelated";
    formula.textContent = partNamed(name) ? formulaOf(part) : vanillaFormulaOf(part);
  }
}

function showPair() {
  const [chain, layer] = [currentChain(), currentLayer()];
  byId("pair-query").textContent = chain.queries[state.query];
  byId("pair-key").textContent = chain.keys[state.key];
  byId("pair-places").textContent = chain.grid ? "" : `(row ${state.query + 1}, column ${state.key + 1})`;
  byId("explanation").textContent = EXPLANATIONS[state.part];
  const isMasked = isBlocked(chain, state.query, state.key);
  for (const [name, row] of rows) {
    const weight = isMean() ? null : layer.weights[name]?.[state.head];
    row.value.textContent = isMasked ? "masked" : format(valueAt(name));
    row.how.textContent = weight && weight !== 1 && !isMasked ? `= ${format(weight)} × ${format(valueAt(name) / weight)}` : "";
    row.node.classList.toggle("chosen", name === state.part);
  }
}

// The overview

const percent = (value) => `${Number((100 * value).toPrecision(3))} %`;

function drawOverview() {
  const [chain, quantity] = [currentChain(), byId("quantity").value];
  const figures = chain.layers.map((layer) => layer.figures[quantity]);
  const most = Math.max(...figures.flat()) || 1;
  const table = tableOf(partNamed("attention").colors);
  const header = element("tr", {}, element("td"));
  data.heads.forEach((head) => header.append(element("th", { textContent: head, scope: "col" })));
  const lines = chain.layers.map((layer, index) => {
    const line = element("tr", {}, element("th", { textContent: layer.number, scope: "row" }));
    data.heads.forEach((number, head) => {
      const text = percent(figures[index][head]);
      const button = element("button", { type: "button", title: `layer ${layer.number}, head ${number}: ${text}` });
      button.setAttribute("aria-label", button.title);
      const isChosen = index === state.layer && head === state.head;
      if (isChosen) button.setAttribute("aria-current", "true");
      button.style.background = `rgb(${table[Math.round((511 * figures[index][head]) / most)]})`;
      button.addEventListener("click", () => show({ layer: index, head }));
      line.append(element("td", {}, button));
    });
    return line;
  });
  const caption = element("caption", { textContent: "↓ layer   → head" });
  byId("grid").replaceChildren(caption, element("thead", {}, header), element("tbody", {}, ...lines));
  const chosen = isMean() ? total(figures[state.layer]) / data.heads.length : figures[state.layer][state.head];
  byId("grid-value").textContent = `layer ${currentLayer().number}, ${headName(state.head)}: ${percent(chosen)}; the darkest: ${percent(most)}`;
}

// Drawing

function draw() {
  byId("layer-shown").textContent = `${currentLayer().number}`;
  byId("head-shown").textContent = isMean() ? "mean of all" : `${data.heads[state.head]}`;
  byId("layer").setAttribute("aria-valuetext", `layer ${currentLayer().number}`);
  byId("head").setAttribute("aria-valuetext", headName(state.head));
  byId("view-label").hidden = !currentChain().grid || byId("mode").value !== "one";
  byId("query-label").hidden = !showsImage();
  byId("zoom-label").hidden = showsImage() || byId("mode").value !== "one";
  byId("special-label").hidden = !currentChain().specialQueries.length && !currentChain().specialKeys.length;
  drawMaps();
  showPair();
  drawPanel();
  drawOverview();
  rememberView();
}

/** The largest cells with which the maps fit, if their names are legible then. */
function fittingZoom(chain) {
  const longest = Math.max(chain.queries.length, chain.keys.length);
  if (chain.grid) return Math.max(2, Math.floor(500 / longest));
  const isBeside = data.hasVanilla && byId("beside").value !== "nothing" && innerWidth >= 1000;
  const width = byId("maps").clientWidth / (isBeside ? 2 : 1) - 24;
  const names = 6.5 * Math.min(16, Math.max(...chain.queries.map((name) => name.length))) + 12;
  const [wide, high] = [(width - names) / chain.keys.length, (innerHeight - 300 - names) / chain.queries.length];
  const largest = Math.max(28, Math.min(44, Math.floor(high)));
  return Math.min(largest, Math.max(14, Math.floor(wide)));
}

function enterChain(zoom) {
  const chain = currentChain();
  byId("layer").max = chain.layers.length - 1;
  state.layer = Math.min(state.layer, chain.layers.length - 1);
  byId("layer").value = state.layer;
  state.query = Math.min(state.query, chain.queries.length - 1);
  state.key = Math.min(state.key, chain.keys.length - 1);
  byId("query").replaceChildren(...chain.queries.map((name, index) => element("option", { value: index, textContent: name })));
  byId("query").value = state.query;
  byId("zoom").value = zoom ?? fittingZoom(chain);
  draw();
}

function choosePictureQuery(index) {
  state.query = index;
  choose(index, state.key);
  drawMaps();
}

/** Shows the view of the page's address. */
function enterView() {
  const zoom = recallView();
  byId("chain").value = state.chain;
  byId("head").value = state.head;
  document.querySelector(`#parts input[value="${state.part}"]`).checked = true;
  enterChain(zoom);
}

function fillIn() {
  const facts = { model: data.model };
  if (data.prediction) {
    const ranked = Object.entries(data.prediction).sort(([, one], [, other]) => other - one);
    const shown = ranked.slice(0, 5).map(([label, value]) => `${label} ${format(value)}`);
    facts.prediction = shown.join(", ") + (ranked.length > 5 ? ", …" : "");
  }
  Object.assign(facts, data.texts); // last, for they may be long
  for (const [name, text] of Object.entries(facts)) {
    const fact = element("dd", { textContent: text, dir: "auto" });
    if (text.length > 100) fact.tabIndex = 0; // it may scroll, which keys must reach as well
    byId("about").append(element("div", {}, element("dt", { textContent: name }), fact));
  }
  data.chains.forEach((chain, index) => byId("chain").append(element("option", { value: index, textContent: chain.title })));
  byId("chain-label").hidden = data.chains.length === 1;
  byId("beside-label").hidden = !data.hasVanilla;
  byId("mode-label").hidden = data.heads.length === 1;
  byId("head").max = data.heads.length - (data.heads.length === 1 ? 1 : 0);
  if (!data.hasVanilla) byId("quantity").querySelector('[value="distance"]').remove();
  byId("exactness").textContent = `Values are within ${percent(data.tolerance)} of the largest absolute value of their map of the model's.`;
}

async function begin() {
  await unpack();
  fillIn();
  makePanel();
  for (const [name, then] of Object.entries({ chain: () => enterChain(), layer: draw, head: draw })) {
    byId(name).addEventListener("input", () => {
      state[name] = Number(byId(name).value);
      then();
    });
  }
  byId("query").addEventListener("input", () => choosePictureQuery(Number(byId("query").value)));
  for (const name of ["mode", "beside", "curve", "scale", "view", "special"]) byId(name).addEventListener("input", draw);
  byId("quantity").addEventListener("input", () => [drawOverview(), rememberView()]);
  byId("zoom").addEventListener("input", () => [shownMaps.forEach((map) => map.resize?.()), rememberView()]);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [name, start] of Object.entries(EXPORTS)) byId(name).addEventListener("click", start);
  addEventListener("hashchange", enterView);
  if (data.image) {
    picture.onload = () => shownMaps.forEach((map) => map.mark());
    picture.src = data.image;
  }
  enterView();
  prepare();
  document.documentElement.dataset.ready = "true";
}

begin();
