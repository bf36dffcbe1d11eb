// What leaves the page: a picture, the numbers, a link to the view.

const LINKED_CONTROLS = ["mode", "beside", "curve", "scale", "view", "special", "zoom", "quantity"];

const escaped = (text) =>
  String(text).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "\ufffd").replace(/[<>&"]/g, (one) => `&#${one.charCodeAt(0)};`);

function svgText(text, x, y, options = "") {
  return `<text x="${x}" y="${y}" ${options}>${escaped(text)}</text>`;
}

/** One map with its title, names and colours, as SVG elements below `top`; and how wide and high it is. */
function svgOfMap(map, title, top, ink) {
  const chain = currentChain();
  const isMatrix = map instanceof Matrix;
  const isNamed = isMatrix && !chain.grid && Math.max(map.queries.length, map.keys.length) <= 64;
  const size = isMatrix ? Math.max(2, Math.min(18, Math.floor(720 / Math.max(map.queries.length, map.keys.length)))) : 1;
  const [width, height] = [map.canvas.width * size, map.canvas.height * size];
  const [left, upper] = isNamed ? [130, top + 160] : [10, top + 50];
  const parts = [svgText(title, 10, top + 20, 'font-weight="bold"')];
  // An image of one pixel for each cell is shorter than as many rectangles.
  parts.push(`<rect x="${left}" y="${upper}" width="${width}" height="${height}" fill="#9a9a9a"/>`);
  parts.push(
    `<image x="${left}" y="${upper}" width="${width}" height="${height}" preserveAspectRatio="none" style="image-rendering: pixelated" href="${map.canvas.toDataURL()}"/>`,
  );
  const short = (name) => (name.length > 16 ? `${name.slice(0, 15)}…` : name);
  if (isNamed) {
    map.queries.forEach((query, i) => {
      parts.push(svgText(short(chain.queries[query]), left - 6, upper + (i + 0.75) * size, `text-anchor="end" font-size="${Math.min(12, size)}"`));
    });
    map.keys.forEach((key, i) => {
      const at = `${left + (i + 0.75) * size} ${upper - 6}`;
      parts.push(`<g transform="translate(${at}) rotate(-90)">${svgText(short(chain.keys[key]), 0, 0, `font-size="${Math.min(12, size)}"`)}</g>`);
    });
  }
  let bottom = upper + height;
  if (map.name) {
    const { colors, unit } = paletteOf(map.name);
    const [id, length] = [`colours-${top}`, Math.max(width, 280)];
    const stops = colors.map((color, i) => `<stop offset="${i / (colors.length - 1)}" stop-color="${color}"/>`).join("");
    parts.push(`<linearGradient id="${id}">${stops}</linearGradient>`);
    parts.push(`<rect x="${left}" y="${bottom + 14}" width="${length}" height="10" fill="url(#${id})" stroke="${ink}" stroke-width=".5"/>`);
    scaleNumbers(map.name, map.limit).forEach((number, i, all) => {
      const anchor = i === 0 ? "start" : i === all.length - 1 ? "end" : "middle";
      parts.push(svgText(number, left + (length * i) / (all.length - 1), bottom + 38, `text-anchor="${anchor}" font-size="12"`));
    });
    parts.push(svgText(unit, left, bottom + 54, 'font-size="12"'));
    bottom += 54;
  }
  return { parts, bottom: bottom + 20, right: left + Math.max(width, 290) + 10 };
}

/** What is shown, as a picture of its own, in the colours of the page. */
function svgOfView() {
  const style = getComputedStyle(document.body);
  const [ink, paper] = [style.color, style.backgroundColor];
  let [bottom, right, parts] = [0, 0, []];
  for (const map of shownMaps) {
    const drawn = svgOfMap(map, map.title, bottom, ink);
    parts.push(...drawn.parts);
    [bottom, right] = [drawn.bottom, Math.max(right, drawn.right, 20 + 8 * map.title.length)];
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${right}" height="${bottom}" viewBox="0 0 ${right} ${bottom}"`,
    `  font-family="system-ui, sans-serif" font-size="14" fill="${ink}">`,
    `<title>${escaped(data.model)}</title><rect width="100%" height="100%" fill="${paper}"/>`,
    ...parts,
    "</svg>",
  ].join("\n");
}

/** Every map that is shown, one after the other, a line for each cell. */
function csvOfView() {
  const chain = currentChain();
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const lines = ["map,chain,layer,head,row,query,column,key,value"];
  for (const map of shownMaps.filter((one) => one.name)) {
    const head = map.head ?? state.head;
    const where = [map.name, chain.name].map(quoted).concat(currentLayer().number, quoted(data.heads[head] ?? "mean"));
    const values = valuesNow(map.name, head);
    const rows = map.queries ?? [state.query];
    for (const query of rows) {
      for (const key of map.keys ?? chain.keys.keys()) {
        const value = isBlocked(chain, query, key) ? "" : Number(values[query * chain.keys.length + key].toPrecision(6));
        lines.push([...where, query + 1, quoted(chain.queries[query]), key + 1, quoted(chain.keys[key]), value].join(","));
      }
    }
  }
  return lines.join("\r\n") + "\r\n";
}

function download(content, suffix) {
  const where = `${currentChain().name}-layer${currentLayer().number}-${headName(state.head).replaceAll(" ", "-")}-${state.part}`;
  const link = element("a", { download: `${where}.${suffix}`, href: URL.createObjectURL(content) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const EXPORTS = {
  csv: () => download(new Blob([csvOfView()], { type: "text/csv" }), "csv"),
  svg: () => download(new Blob([svgOfView()], { type: "image/svg+xml" }), "svg"),
  png: async () => {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svgOfView())}`;
    await image.decode();
    const canvas = element("canvas", { width: 2 * image.width, height: 2 * image.height });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(blob, "png"));
  },
};

let remembering = 0;

/** Puts the view into the page's address; not at each step of a pointer, which browsers refuse. */
function rememberView() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const view = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) view.set(name, value);
    for (const id of LINKED_CONTROLS) view.set(id, byId(id).type === "checkbox" ? byId(id).checked : byId(id).value);
    byId("link").href = `#${view}`;
    history.replaceState(null, "", `#${view}`);
  }, 250);
}

/** Takes the view from the page's address; what the page does not have is left as it is. */
function recallView() {
  const view = new URLSearchParams(location.hash.slice(1));
  const number = (name, count) => {
    const value = Number(view.get(name));
    return view.has(name) && Number.isInteger(value) && value >= 0 && value < count ? value : state[name];
  };
  state.chain = number("chain", data.chains.length);
  state.layer = number("layer", currentChain().layers.length);
  state.head = number("head", data.heads.length + 1);
  state.query = number("query", currentChain().queries.length);
  state.key = number("key", currentChain().keys.length);
  if (partNamed(view.get("part"))) state.part = view.get("part");
  for (const id of LINKED_CONTROLS.filter((one) => view.has(one) && one !== "zoom")) {
    const [control, value] = [byId(id), view.get(id)];
    if (control.type === "checkbox") control.checked = value === "true";
    else if ([...control.options].some((option) => option.value === value)) control.value = value;
  }
  return view.get("zoom");
}
