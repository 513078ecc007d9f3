// What the page shows, drawn from its state: see page.js.

function draw() {
  drawText();
  drawBoxes();
  drawChips();
  drawRunners();
  if (planar) drawPlanes();
  for (const grid of grids) {
    if (grid.isNear) grid.paint();
    else grid.isStale = true;
  }
  drawAttention();
  follow();
  drawNeed();
  drawLearning();
  explainAgain();
  for (const table of all("details[open][data-table]")) fillTable(table);
}

let followed = null; // the position that was scrolled to

/** Scroll the pictures along the text to the chosen position, where they are wider than the screen. */
function follow() {
  if (followed === state.t) return;
  followed = state.t;
  for (const canvas of [find("arcs"), ...all(".strips canvas")]) {
    const box = canvas.parentElement;
    box.scrollLeft = (state.t + 0.5) * columnWidth(canvas) - box.clientWidth / 2;
  }
}

/** An element with a text, and what else it is given. */
function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

function drawText() {
  const spans = state.ids.slice(0, state.shown).map((id, t) => {
    const symbol = model.symbols[id];
    const span = element("span", symbol === "\n" ? "↵\n" : id === model.end ? "■" : symbol);
    if (t >= state.prompt.length) span.className = "written";
    if (t === state.t) span.classList.add("chosen");
    span.dataset.t = t;
    return span;
  });
  if (state.shown < state.ids.length) spans.push(element("span", "", { className: "cursor" }));
  find("text").replaceChildren(...spans);
  find("back").disabled = find("restart").disabled = state.shown <= state.prompt.length;
  find("step").disabled = state.shown >= state.ids.length;
  const guess = find("guess");
  guess.replaceChildren();
  if (state.shown >= state.ids.length) guess.textContent = say("ended");
  else guess.append(`${say("next")}: `, ...ranked(positions() - 1, 3).map(bar));
}

/** The likeliest characters after position t. */
function ranked(t, n) {
  const probs = state.pass.probs[t];
  return [...probs.keys()].sort((a, b) => state.pass.logits[t][b] - state.pass.logits[t][a]).slice(0, n).map((id) => ({ id, share: probs[id] }));
}

/** A character and its probability, as a bar. */
function bar({ id, share }, n) {
  const item = element("span", "", { className: n ? "bar" : "bar best" });
  item.append(element("b", visible(model.symbols[id])), element("i", ""), element("span", percent(share)));
  item.children[1].style.setProperty("--share", share);
  return item;
}

function drawBoxes() {
  const { pass, t, off } = state;
  const numbers = (row) => [...row.slice(0, 2)].map(shown).join("  ") + (row.length > 2 ? " …" : "");
  let [s, h] = [0, 0];
  pass.att[t].forEach((shares, head) => shares.slice(0, t + 1).forEach((share, n) => share > pass.att[t][h][s] && ([s, h] = [n, head])));
  const [best] = ranked(t, 1);
  const boxes = [
    ["characters", visible(model.symbols[pass.ids[t]]), say("box_character"), say("box_place", { id: pass.ids[t], t })],
    ["embedding", numbers(pass.x[t]), say("box_numbers", { n: C }), "x = wte + wpe"],
    ["attention", off.has("attn") ? "—" : visible(model.symbols[pass.ids[s]]), say("box_attention"), off.has("attn") ? say("box_off") : say("box_mostly", { c: `${visible(model.symbols[pass.ids[s]])} (${s})`, p: percent(pass.att[t][h][s]) })],
    ["mlp", numbers(pass.x_mlp[t]), say("box_moved"), "x + attn + mlp"],
    ["choice", shown(pass.logits[t][best.id]), say("box_scores", { n: V }), "lm_head · ln_f"],
    ["choice", visible(model.symbols[best.id]), say("box_chosen"), percent(best.share)],
  ];
  const items = boxes.map(([section, value, title, note]) => {
    const link = element("a", "", { href: `#${section}` });
    link.append(element("small", title), element("b", value), element("small", note));
    const item = element("li", "");
    item.append(link);
    return item;
  });
  find("boxes").replaceChildren(...items);
}

function drawChips() {
  const chips = state.pass.ids.slice(0, positions()).map((id, t) => {
    const button = element("button", "", { type: "button", className: t === state.t ? "chip chosen" : "chip" });
    button.dataset.t = t;
    button.setAttribute("aria-pressed", t === state.t);
    button.append(element("b", visible(model.symbols[id])), element("small", id));
    const item = element("li", "");
    item.append(button);
    return item;
  });
  const focused = document.activeElement?.closest?.("#chips button")?.dataset.t;
  find("chips").replaceChildren(...chips);
  if (focused !== undefined) chips[focused]?.firstChild.focus();
}

function drawRunners() {
  const items = ranked(state.t, Math.min(6, V)).map((candidate, n) => {
    const item = element("li", "");
    item.append(bar(candidate, n), element("small", `${shown(state.pass.logits[state.t][candidate.id])}`));
    return item;
  });
  find("runners").replaceChildren(...items);
}

function drawPlanes() {
  const { pass, t, along } = state;
  const view = { model, pass: { ...pass, x: pass.x.slice(0, positions()) }, t, along, bounds: state.bounds, areas: state.areas };
  Object.assign(view, { symbol: visible(model.symbols[pass.ids[t]]), words: [0, 1, 2].map((n) => say(`along_${n}`)) });
  drawPlane(find("plane-picture"), view);
  const points = path(model, pass, t).map((place) => `(${place.map(shown).join(", ")})`);
  find("plane-picture").setAttribute("aria-label", say("plane_label", { c: named(pass.ids[t]), t, path: points.join(" → ") }));
  if (C === 2) {
    const { z, winner } = drawLines(find("lines-picture"), view);
    find("lines-picture").setAttribute("aria-label", say("lines_label", { n: V, z: shown(z), c: named(winner) }));
  }
  find("along-name").textContent = say(inPlane(`along_${Math.round(along)}`));
}

function drawAttention() {
  const { pass, t } = state;
  const att = pass.att[t].map((shares) => shares.slice(0, t + 1));
  drawArcs(find("arcs"), symbolsOf(pass.ids.slice(0, positions())), t, att, columnWidth(find("arcs")), columns());
  const most = (shares) => [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, 3).filter((s) => shares[s] > 0.005);
  const said = att.map((shares, h) => say("arcs_said", { h, c: named(pass.ids[t]), list: most(shares).map((s) => `${named(pass.ids[s])} (${s}) ${percent(shares[s])}`).join(", ") }));
  find("arcs-said").textContent = said.slice(0, 4).join(" ");
  find("arcs").setAttribute("aria-label", said.join(" "));
}

/** A text, with the characters that are not the reference's marked. */
function compared(ids) {
  return ids.map((id, t) => element("span", id === model.end ? "■" : model.symbols[id] === "\n" ? "↵\n" : model.symbols[id], { className: id === state.reference[t] ? "" : "wrong" }));
}

function drawNeed() {
  const written = state.reference.length - state.prompt.length;
  const right = state.reference.filter((id, t) => t >= state.prompt.length && id === state.said[t]).length;
  const same = right === written && state.said.length === state.reference.length;
  find("verdict").textContent = same ? say("survives") : say("broken", { n: right, all: written });
  find("verdict").className = same ? "same" : "broken";
  for (const id of ["says", "moment-says", "weights-say"]) find(id).replaceChildren(...compared(state.said));
}

function drawLearning() {
  if (!data.moments.length) return;
  const moment = data.moments[state.moment];
  const name = moment ? say("moment_name", { step: moment.step, loss: shown(moment.loss) }) : say("moment_last");
  find("moment-name").textContent = name;
  find("moment").setAttribute("aria-valuetext", name);
  drawLosses(find("losses"), data.moments, data.boundaries, Math.min(state.moment, data.moments.length - 1));
  const losses = data.moments.map(({ loss }) => loss);
  find("losses").setAttribute("aria-label", say("losses_label", { a: shown(losses[0]), b: shown(losses[losses.length - 1]) }));
}

/** The numbers of the chosen position as a table, for whoever cannot see the pictures, and for copying. */
function fillTable(details) {
  const { pass, t } = state;
  const kind = details.dataset.table;
  let [heads, rows] = [[], []];
  if (kind === "moments") {
    heads = [say("step_name"), "loss"];
    rows = data.moments.map(({ step, loss }) => [step, shown(loss)]);
  } else if (kind === "plane") {
    heads = ["", C === 2 ? "z" : "u", C === 2 ? "mean" : "v"];
    rows = path(model, pass, t).map((place, n) => [say(`along_${n}`), ...place.map(shown)]);
  } else if (kind === "att") {
    heads = [say("place"), say("symbol"), ...pass.att[t].map((_, h) => say("head", { h }))];
    rows = [...Array(t + 1).keys()].map((s) => [s, named(pass.ids[s]), ...pass.att[t].map((shares) => percent(shares[s]))]);
  } else if (kind.startsWith("w:")) {
    const weight = model.w[kind.slice(2)];
    const width = weight.shape.length > 1 ? weight.shape[1] : 1;
    heads = ["", ...Array(width).keys()];
    rows = [...Array(weight.shape[0]).keys()].map((r) => [r, ...[...weight.slice(r * width, (r + 1) * width)].map(shown)]);
  } else {
    const names = kind.split(" ");
    heads = [say(kind.startsWith("logits") ? "symbol" : "channel"), ...names];
    rows = [...pass[names[0]][t].keys()].map((c) => [kind.startsWith("logits") ? named(c) : c, ...names.map((name) => shown(pass[name][t][c]))]);
  }
  const table = element("table", "");
  table.append(element("caption", kind.includes(":") || kind === "moments" ? kind : say("of", { a: kind, c: named(pass.ids[t]), t })));
  const line = (cells, first) => {
    const tr = element("tr", "");
    tr.append(...cells.map((cell, n) => element(first ? "th" : n ? "td" : "th", cell, first ? { scope: "col" } : n ? {} : { scope: "row" })));
    return tr;
  };
  table.append(line(heads, true), ...rows.map((row) => line(row, false)));
  const box = element("div", "", { className: "scroll", tabIndex: 0 });
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", table.caption.textContent);
  box.append(table);
  details.querySelector(".scroll")?.remove();
  details.append(box);
}
