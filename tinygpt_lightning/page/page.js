// The page: what is chosen, what follows from it, and the controls.

const data = JSON.parse(document.getElementById("data").textContent);
const model = readModel(data);
const { n_embd: C, n_head: H, vocab_size: V } = data.config;
const find = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

const state = {
  prompt: [], // ids of the beginning
  ids: [], // ids of the whole text, as far as it goes
  said: [], // ids of the same without the parts that are taken out, also where only the text of that was recorded
  pass: null, // the pass over all of it; what is shown is its first `shown` positions, since none looks ahead
  reference: [], // ids of the text that the model, as it was released, makes of the beginning
  shown: 0, // characters on the screen
  t: 0, // the chosen position
  off: new Set(), // parts that are taken out
  moment: data.moments.length, // the chosen moment of the training; the last one is the model itself
  along: 3, // how far the points of the plane have moved
  ref: null, // the number that is explained
};
const recorded = data.recorded && { ...data.recorded, pass: recordedPass(model, data.recorded) };
const planar = C <= 3 && C > 1 && !recorded;
const grids = [];
let timer = null;

/** Positions on the screen: the last character of a whole text is never read. */
const positions = () => Math.min(state.shown, state.pass.ids.length);
const symbolsOf = (ids) => ids.map((id) => model.symbols[id]);
const named = (id) => {
  const symbol = model.symbols[id];
  return symbol === " " ? say("space") : symbol === "\n" ? say("newline") : id === model.end ? say("end") : `“${visible(symbol)}”`;
};

// ---- What follows from what is chosen -------------------------------------------------------------------------------

/** The text as far as it goes, with the weights and parts as they are now. */
function compute() {
  if (recorded) {
    const part = [...state.off][0];
    Object.assign(state, { ids: idsOf(recorded.text), pass: recorded.pass });
    state.said = part ? idsOf(recorded.without[part]) : state.ids;
  } else {
    Object.assign(state, generate(model, state.prompt, data.length, state.off));
    state.said = state.ids;
  }
  state.shown = Math.max(state.prompt.length, Math.min(state.shown, state.ids.length));
  state.t = Math.min(state.t, positions() - 1);
  if (planar) {
    state.bounds = bounds(model, state.pass);
    state.areas = C === 2 ? stripes(model, state.bounds[0]) : regions(model, state.bounds);
  }
  draw();
}

/** Ids of a text that the model itself wrote, in which the names of specials may stand. */
const idsOf = (text) => [...text].map((character) => model.ids.get(character) ?? -1).filter((id) => id >= 0);

/** Begin anew with a prompt. */
function begin(prompt) {
  state.prompt = prompt;
  state.reference = recorded ? idsOf(recorded.text) : generate(released(), prompt, data.length).ids;
  Object.assign(state, { shown: prompt.length, t: prompt.length - 1 });
  compute();
}

const released = () => ({ ...model, w: readWeights(data, data.weights) });

/** Show so many characters; the last of them is looked at. */
function show(n) {
  state.shown = Math.max(state.prompt.length, Math.min(n, state.ids.length));
  state.t = positions() - 1;
  if (state.shown === state.ids.length) pause();
  draw();
  if (planar && !matchMedia("(prefers-reduced-motion: reduce)").matches) travel(performance.now(), timer ? 300 : 900);
}

/** Let the points move from their embeddings to where the next character is chosen, in so many milliseconds. */
function travel(start, duration) {
  const [t, shown] = [state.t, state.shown];
  const frame = (now) => {
    if (state.t !== t || state.shown !== shown) return; // something else is looked at by now
    state.along = Math.max(0, Math.min(3, (3 * (now - start)) / duration));
    find("along").value = state.along;
    drawPlanes();
    if (state.along < 3) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function pause() {
  clearInterval(timer);
  timer = null;
  find("play").textContent = say("play");
}

function play() {
  if (timer) return pause();
  if (state.shown === state.ids.length) show(state.prompt.length);
  timer = setInterval(() => show(state.shown + 1), 400);
  find("play").textContent = say("pause");
}

// ---- Numbers explained, and changed ---------------------------------------------------------------------------------

/** Explain a number; where it is chosen and not only pointed at, look at its position too. */
function point(ref, isChosen) {
  state.ref = ref;
  if (isChosen && !ref.array.startsWith("w:") && ref.t !== state.t) {
    state.t = ref.t;
    return draw();
  }
  explainAgain();
}

function explainAgain() {
  const { ref } = state;
  find("reading").hidden = !ref;
  if (!ref || (!ref.array.startsWith("w:") && ref.t >= positions())) return;
  const { name, value, formula, sources } = explain(model, state.pass, ref, state.off);
  const where = ref.array.startsWith("w:") ? "" : ` (${named(state.pass.ids[ref.t])})`;
  find("formula").replaceChildren(element("b", `${name}${where} = ${shown(value)}`), formula ? ` = ${formula}` : "");
  for (const grid of grids) grid.light([ref, ...sources]);
  const isWeight = ref.array.startsWith("w:") && !recorded;
  find("change").hidden = !isWeight;
  if (!isWeight) return;
  const slider = find("value");
  if (slider.dataset.ref !== JSON.stringify(ref)) {
    const room = 3 * Math.max(1, Math.abs(value));
    Object.assign(slider, { min: value - room, max: value + room, step: room / 500 });
    slider.dataset.ref = JSON.stringify(ref);
  }
  slider.value = value;
  if (document.activeElement !== find("number")) find("number").value = Number(value.toPrecision(6));
}

function change({ array, t, i }, value) {
  const weight = model.w[array.slice(2)];
  weight[t * (weight.shape[1] ?? 1) + i] = value;
  compute();
}

// ---- Controls -------------------------------------------------------------------------------------------------------

/** The key of a text, or of what is said instead of a model of width 3, whose plane has regions and no stripes. */
const inPlane = (key) => (C === 3 && `${key}_in_3` in WORDS.en ? `${key}_in_3` : key);

function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  const values = { n: V };
  for (const node of all("[data-word]")) {
    const key = node.dataset.word;
    const n = { plane_text: C, mlp_text: data.config.n_inner }[key] ?? V;
    node.textContent = say(inPlane(key), { ...values, n });
  }
  for (const node of all("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const node of all("details[data-table^='w:'] summary")) node.textContent = say("table");
  find("language").textContent = say("other");
  find("language").lang = chosen === "en" ? "vi" : "en";
  const count = data.parameters.toLocaleString(chosen);
  find("lead").textContent = say("lead", { n: count });
  document.title = `${say("title")} · ${data.name}`;
  find("source").textContent = say("source", { name: data.name });
  if (recorded) find("recorded").textContent = say("recorded", { n: count, t: recorded.pass.ids.length });
  for (const id of ["step", "back"]) find(id).textContent = say(id);
  find("restart").replaceChildren("⏮ ", element("span", say("restart"), { className: "word" }));
  find("restart").setAttribute("aria-label", say("restart"));
  find("play").textContent = say(timer ? "pause" : "play");
  for (const box of all("#switches label span")) box.textContent = partName(box.dataset.part);
  if (state.pass) draw();
}

const partName = (part) => (part.startsWith("head ") ? say("part_head", { h: part.slice(5) }) : say(`part_${part}`));

function addSwitches() {
  for (const part of data.parts) {
    const box = element("input", "", { type: "checkbox", checked: true });
    const label = element("label", "");
    const name = element("span", "");
    name.dataset.part = part;
    label.append(box, name);
    find("switches").append(label);
    box.addEventListener("change", () => {
      if (recorded && !box.checked) {
        state.off.clear(); // one at a time is recorded
        for (const other of all("#switches input")) other.checked = other === box ? false : true;
      }
      if (box.checked) state.off.delete(part);
      else state.off.add(part);
      compute();
    });
  }
}

function type() {
  const text = find("typed").value;
  const error = find("typed-error");
  error.textContent = "";
  try {
    const ids = encode(model, text);
    if (!ids.length) error.textContent = say("empty");
    else if (ids.length >= data.length) error.textContent = say("too_long", { n: data.length - 1 });
    else begin(ids);
  } catch (problem) {
    if (!problem.character) throw problem;
    error.textContent = say("unknown", { c: `“${problem.character}”` });
  }
}

function listen() {
  const on = (id, event, action) => find(id).addEventListener(event, action);
  on("language", "click", () => speak(language === "en" ? "vi" : "en"));
  on("play", "click", play);
  on("step", "click", () => show(state.shown + 1));
  on("back", "click", () => show(state.shown - 1));
  on("restart", "click", () => show(state.prompt.length));
  on("typed", "input", type);
  on("prompt", "submit", (event) => event.preventDefault());
  on("along", "input", () => ((state.along = Number(find("along").value)), drawPlanes()));
  on("moment", "input", () => {
    state.moment = Number(find("moment").value);
    model.w = readWeights(data, data.moments[state.moment]?.weights ?? data.weights);
    compute();
  });
  on("reset", "click", () => ((model.w = released().w), compute()));
  on("value", "input", () => change(state.ref, Number(find("value").value)));
  on("number", "input", () => Number.isFinite(find("number").valueAsNumber) && change(state.ref, find("number").valueAsNumber));
  on("close", "click", () => ((state.ref = null), grids.forEach((grid) => grid.light([])), explainAgain()));
  for (const id of ["text", "chips"]) {
    on(id, "click", (event) => {
      const t = event.target.closest("[data-t]")?.dataset.t;
      if (t !== undefined) (state.t = Math.min(Number(t), positions() - 1)), draw();
    });
  }
  for (const details of all("details[data-table]")) details.addEventListener("toggle", () => details.open && fillTable(details));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", () => (draw(), grids.forEach((grid) => grid.paint())));
  window.addEventListener("resize", draw);
}

function start() {
  for (const prompt of data.prompts) find("taught").append(element("option", "", { value: prompt }));
  const shows = { plane: planar, weights: !recorded, prompt: !recorded, recorded, learning: data.moments.length };
  for (const id in shows) {
    find(id).hidden = !shows[id];
    for (const link of all(`#more [href="#${id}"]`)) link.hidden = !shows[id];
  }
  find("lines-picture").closest("figure").hidden = C !== 2;
  find("moment").max = find("moment").value = data.moments.length;
  find("typed").value = data.prompts[0];
  addGrids();
  addSwitches();
  listen();
  speak(navigator.language.startsWith("vi") ? "vi" : "en");
  begin(recorded ? state.prompt.concat(idsOf(data.prompts[0])) : encode(model, data.prompts[0]));
  for (const grid of grids) if (grid.isStale) grid.paint(); // once, so that each has its size
}

start();
