// Numbers as pictures: heat maps whose cells can be pointed at, attention as arcs over the text.

const HEADS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"]; // Okabe and Ito 2008
const ROOM = 16; // height of the characters above a heat map, in pixels

/** A colour of the style sheet, as it is now: light or dark. */
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** The colours of a heat map: from blue over nothing to orange for numbers, from nothing to dark or bright for shares. */
function colours() {
  const [low, none, high, middle, most] = ["--low", "--none", "--high", "--some", "--most"].map((name) => rgb(css(name)));
  const mix = (a, b, share) => a.map((from, n) => from + (b[n] - from) * share);
  return {
    number: (value) => (value < 0 ? mix(none, low, -value) : mix(none, high, value)), // -1 to 1
    share: (value) => (value < 0.5 ? mix(none, middle, 2 * value) : mix(middle, most, 2 * value - 1)), // 0 to 1
  };
}

/** Give a canvas its size in CSS pixels; sharp on any screen. */
function sized(canvas, width, height) {
  const dense = Math.min(window.devicePixelRatio || 1, 3);
  const [w, h] = [Math.round(width * dense), Math.round(height * dense)];
  if (canvas.width !== w || canvas.height !== h) {
    [canvas.width, canvas.height] = [w, h];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  }
  const context = canvas.getContext("2d");
  context.setTransform(dense, 0, 0, dense, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Characters in a row, one over each column. */
function drawSymbols(context, symbols, cell, y, chosen) {
  context.font = `${Math.min(13, cell + 1)}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  symbols.forEach((symbol, t) => {
    context.fillStyle = t === chosen ? css("--accent") : css("--quiet");
    context.fillText(visible(symbol), (t + 0.5) * cell, y);
  });
}

/**
 * A heat map on a canvas. What it shows comes from functions, so that it follows whatever changes:
 *
 *   size() → [rows, columns]; value(r, c) → number, or undefined where there is none;
 *   cell() → [width, height] in pixels; symbols() → what stands above the columns; chosen() → an outlined column;
 *   shares: whether the numbers are shares from 0 to 1; ref(r, c) ↔ place(ref): see explain.js; label() → in words.
 *
 * @param on What happens: point(ref, isChosen), drag(ref, by) where numbers can be changed.
 */
class Grid {
  constructor(canvas, spec, on) {
    Object.assign(this, spec, { canvas, on, lit: [], at: [0, 0], image: document.createElement("canvas") });
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerdown", (event) => this.pressed(event));
    canvas.addEventListener("pointerup", () => (this.from = null));
    canvas.addEventListener("keydown", (event) => this.typed(event));
  }

  /** Draw it anew, with the numbers as they are now. */
  paint() {
    this.isStale = false;
    const [rows, columns] = (this.shape = this.size());
    this.largest = 1e-12;
    let [low, high] = [Infinity, -Infinity];
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const value = this.value(r, c);
        if (value === undefined) continue;
        [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
    this.largest = Math.max(this.largest, -low, high);
    [this.image.width, this.image.height] = [columns, rows];
    const context = this.image.getContext("2d");
    const pixels = context.createImageData(columns, rows);
    const colour = colours();
    for (let r = 0, at = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++, at += 4) {
        const value = this.value(r, c);
        if (value === undefined) continue;
        const [red, green, blue] = this.shares ? colour.share(Math.sqrt(value)) : colour.number(value / this.largest);
        [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2], pixels.data[at + 3]] = [red, green, blue, 255];
      }
    }
    context.putImageData(pixels, 0, 0);
    this.canvas.setAttribute("aria-label", this.label({ r: rows, n: columns, min: shown(low), max: shown(high) }));
    if (this.range) this.range.textContent = `${shown(low)} … ${shown(high)}`;
    this.show();
  }

  /** Bring it to the screen, and mark the chosen column and the numbers that are lit. */
  show() {
    const [rows, columns] = this.shape;
    const [width, height] = this.cell();
    const symbols = this.symbols();
    const top = symbols ? ROOM : 0;
    const context = sized(this.canvas, columns * width + 2, top + rows * height + 2);
    if (symbols) drawSymbols(context, symbols, width, ROOM / 2, this.chosen());
    context.translate(1, top + 1);
    context.imageSmoothingEnabled = height < 1 || width < 1;
    context.drawImage(this.image, 0, 0, columns * width, rows * height);
    context.strokeStyle = css("--line");
    context.strokeRect(-0.5, -0.5, columns * width + 1, rows * height + 1);
    const chosen = this.chosen();
    context.strokeStyle = css("--accent");
    context.lineWidth = 1.5;
    if (chosen !== null && chosen < columns) context.strokeRect(chosen * width, 0, width, rows * height);
    context.strokeStyle = css("--ink");
    context.lineWidth = 2;
    for (const ref of this.lit) {
      const [r, c] = this.place(ref);
      context.strokeRect(c * width, r * height, Math.max(width, 2), Math.max(height, 2));
    }
  }

  /** Outline those of the numbers that are its own. */
  light(refs) {
    const lit = refs.filter((ref) => this.owns(ref));
    if (!lit.length && !this.lit.length) return;
    this.lit = lit;
    if (!this.isStale) this.show();
  }

  cellAt(event) {
    const [rows, columns] = this.shape;
    const [width, height] = this.cell();
    const box = this.canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - 1) / width);
    const r = Math.floor((event.clientY - box.top - 1 - (this.symbols() ? ROOM : 0)) / height);
    if (c < 0 || c >= columns || r >= rows) return null;
    return [Math.max(r, 0), c]; // the characters above belong to the first row
  }

  moved(event) {
    if (this.from) {
      const by = (this.from.y - event.clientY) / 60; // a screen's height is some ten times the number's own size
      this.on.drag(this.ref(...this.at), this.from.value, by);
      return;
    }
    const cell = this.cellAt(event);
    if (cell && this.value(...cell) !== undefined) this.on.point(this.ref(...cell), false);
  }

  pressed(event) {
    const cell = this.cellAt(event);
    if (!cell || this.value(...cell) === undefined) return;
    this.at = cell;
    this.on.point(this.ref(...cell), true);
    if (!this.on.drag) return;
    this.from = { y: event.clientY, value: this.value(...cell) };
    this.canvas.setPointerCapture(event.pointerId);
  }

  typed(event) {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [r, c] = [this.at[0] + move[0], this.at[1] + move[1]];
    if (r < 0 || c < 0 || r >= this.shape[0] || c >= this.shape[1] || this.value(r, c) === undefined) return;
    this.at = [r, c];
    this.on.point(this.ref(r, c), true);
  }
}

/**
 * Where position t looks: an arc to each position, the thicker the more.
 *
 * @param symbols The text.
 * @param att What each head's shares are at t: (H, t + 1).
 */
function drawArcs(canvas, symbols, t, att, cell, columns) {
  const height = Math.min(150, 40 + (t + 1) * cell * 0.25);
  const context = sized(canvas, columns * cell + 2, height + ROOM);
  drawSymbols(context, symbols, cell, height + ROOM / 2, t);
  att.forEach((shares, h) => {
    context.strokeStyle = HEADS[h % HEADS.length];
    for (let s = 0; s <= t; s++) {
      if (shares[s] < 0.005) continue;
      context.globalAlpha = 0.25 + 0.75 * shares[s];
      context.lineWidth = 0.5 + 6 * shares[s];
      context.beginPath();
      const [from, to] = [(t + 0.5) * cell, (s + 0.5) * cell];
      // Itself is a small ring; the heads' arcs lie a little apart.
      if (s === t) context.arc(from, height - 8, 6 + 2 * h, 0, 2 * Math.PI);
      else {
        context.moveTo(from, height);
        const up = Math.min(height - 8, ((from - to) / 2) * 0.7 + 14 + 3 * h);
        context.bezierCurveTo(from, height - 1.3 * up, to, height - 1.3 * up, to, height);
      }
      context.stroke();
    }
  });
  context.globalAlpha = 1;
}

// ---- The heat maps of the page: see page.js for its state -----------------------------------------------------------

const CAPTIONS = {
  wte: "wte", wpe: "wpe", x: "x = wte + wpe", ln_1: "ln_1(x)", q: "q", k: "k", v: "v", y: "y = Σ att·v",
  attn: "attn = c_proj(y)", x_attn: "x + attn", ln_2: "ln_2(x + attn)", c_fc: "c_fc(ln_2)", gelu: "gelu(c_fc)",
  mlp: "mlp = c_proj(gelu)", x_mlp: "x + attn + mlp", ln_f: "ln_f(x + attn + mlp)", logits: "logits = lm_head(ln_f)",
  probs: "softmax(logits)",
}; // prettier-ignore

/** Columns of all pictures along the text, so that they do not change while it is written. */
const columns = () => state.pass.ids.length;
const columnWidth = (canvas) => Math.max(12, Math.min(24, Math.floor((canvas.closest(".scroll").clientWidth - 2) / columns())));
const rowHeight = (rows) => (rows <= 4 ? 22 : rows <= 16 ? 12 : rows <= 40 ? 8 : Math.min(4, 240 / rows));

/** A heat map with its caption, in a box of its own that scrolls. */
function addGrid(parent, caption, spec) {
  const figure = element("figure", "");
  const range = element("span", "", { className: "range" });
  const line = element("figcaption", "");
  line.append(element("code", caption), " ", range);
  const scroll = element("div", "", { className: "scroll" });
  const canvas = element("canvas", "");
  scroll.append(canvas);
  figure.append(line, scroll);
  parent.append(figure);
  const label = (values) => say("heat_label", { a: caption, ...values });
  const grid = new Grid(canvas, { range, label, ...spec(canvas) }, { point, drag: null, ...spec(canvas).on });
  grids.push(grid);
  near.observe(canvas);
  return grid;
}

/** Only what is on the screen, or close to it, is drawn at once; the rest when it comes there. */
const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const grid = grids.find(({ canvas }) => canvas === target);
      grid.isNear = isIntersecting;
      if (isIntersecting && grid.isStale) grid.paint();
    }
  },
  { rootMargin: "300px" },
);

/** A row of the pass for each position, standing upright: channels from top to bottom, the text from left to right. */
const strip = (name) => (canvas) => ({
  size: () => [state.pass[name][0].length, columns()],
  value: (r, c) => (c < positions() ? state.pass[name][c][r] : undefined),
  cell: () => [columnWidth(canvas), rowHeight(state.pass[name][0].length)],
  symbols: () => symbolsOf(state.pass.ids.slice(0, positions())),
  chosen: () => state.t,
  shares: name === "probs",
  ref: (r, c) => ({ array: name, t: c, i: r }),
  place: ({ t, i }) => [i, t],
  owns: ({ array }) => array === name,
});

/** What a head looks at: rows look, columns are looked at. */
const triangle = (h) => (canvas) => ({
  size: () => [columns(), columns()],
  value: (r, c) => (c <= r && r < positions() ? state.pass.att[r][h][c] : undefined),
  cell: () => Array(2).fill(Math.max(2, Math.min(H > 1 ? 240 : 420, canvas.closest(".grid").clientWidth - 24) / columns())),
  symbols: () => null,
  chosen: () => null,
  shares: true,
  ref: (r, c) => ({ array: "att", h, t: r, i: c }),
  place: ({ t, i }) => [t, i],
  owns: (ref) => ref.array === "att" && ref.h === h,
});

/** A weight; embeddings and vectors lie on their side, symbols and positions from left to right. */
const weights = (name, shape) => () => {
  const turned = shape.length === 1 || name === "wte.weight" || name === "wpe.weight";
  const width = shape[1] ?? 1;
  const [rows, cols] = turned ? [width, shape[0]] : [shape[0], width];
  const size = Math.max(2, Math.min(20, 640 / cols, 640 / rows));
  return {
    size: () => [rows, cols],
    value: (r, c) => model.w[name][turned ? c * width + r : r * width + c],
    cell: () => [size, size],
    symbols: () => (name === "wte.weight" && size >= 10 ? model.symbols.map((symbol, id) => (id === model.end ? "■" : [...symbol].length > 1 ? "·" : symbol)) : null),
    chosen: () => null,
    ref: (r, c) => (turned ? { array: `w:${name}`, t: c, i: r } : { array: `w:${name}`, t: r, i: c }),
    place: ({ t, i }) => (turned ? [i, t] : [t, i]),
    owns: ({ array }) => array === `w:${name}`,
    on: { drag: (ref, value, by) => change(ref, value + by * Math.max(1, Math.abs(value)) * 2) },
  };
};

function addGrids() {
  for (const box of all(".strips")) for (const name of box.dataset.rows.split(" ")) addGrid(box, CAPTIONS[name], strip(name));
  for (let h = 0; h < H; h++) addGrid(find("heads"), `att[${h}]`, triangle(h));
  if (recorded) return;
  for (const [name, shape] of data.shapes) {
    const { canvas } = addGrid(find("weight-grids"), `${name} (${shape.join(" × ")})`, weights(name, shape));
    const details = element("details", "");
    details.dataset.table = `w:${name}`;
    details.append(element("summary", ""));
    if (shape.reduce((product, n) => product * n, 1) <= 2000) canvas.closest("figure").append(details);
  }
}
