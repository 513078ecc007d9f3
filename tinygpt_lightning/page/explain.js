// Each number of a pass with the formula that made it: names, then the numbers filled in, and where those came from.
//
// A number is named by {array, t, i}: which array of the pass, position, channel; {array: "att", h, t, i} is how much
// position t looks at position i with head h; {array: "w:NAME", t: row, i: column} is a weight.

const NORMS = { ln_1: ["h.ln_1", "x"], ln_2: ["h.ln_2", "x_attn"], ln_f: ["ln_f", "x_mlp"] };
const SUMS = { x: ["wte", "wpe"], x_attn: ["x", "attn"], x_mlp: ["x_attn", "mlp"] };
// To an array: the linear layer that makes it, what that layer reads, and where among its outputs it begins, in C.
const LINEARS = {
  q: ["h.attn.c_attn", "ln_1", 0], k: ["h.attn.c_attn", "ln_1", 1], v: ["h.attn.c_attn", "ln_1", 2],
  attn: ["h.attn.c_proj", "y", 0], c_fc: ["h.mlp.c_fc", "ln_2", 0], mlp: ["h.mlp.c_proj", "gelu", 0],
  logits: ["lm_head", "ln_f", 0],
}; // prettier-ignore

/**
 * How a number came about.
 *
 * @param model The model; where it has no weights, those are named and not filled in.
 * @param pass The pass.
 * @param ref Which number: {array, t, i, h}.
 * @returns {name, value, formula: the text behind the first "=", sources: refs of the numbers in it}.
 */
function explain(model, pass, ref, off = new Set()) {
  const { array, t, i } = ref;
  const { n_embd: C, n_head: H, layer_norm_epsilon: epsilon } = model.config;
  const at = (name, s, c) => ({ array: name, t: s, i: c, value: pass[name][s][c] });
  const weight = (name, r, c) => weightAt(model, name, r, c);
  const own = (value, formula, sources) => ({ name: `${array}[${t}, ${i}]`, value, formula, sources });
  if (array.startsWith("w:")) return { ...own(weight(array.slice(2), t, i).value, "", []), name: weightName(ref) };
  if (array === "att") return explainAttention(model, pass, ref, at);
  const value = pass[array][t][i];
  if (off.has(array)) return own(value, "0", []);
  if (array === "wte") return own(value, `wte.weight[${pass.ids[t]}, ${i}]`, [weight("wte.weight", pass.ids[t], i)]);
  if (array === "wpe") return own(value, `wpe.weight[${t}, ${i}]`, [weight("wpe.weight", t, i)]);
  if (array in SUMS) {
    const [a, b] = SUMS[array].map((name) => at(name, t, i));
    return own(value, `${SUMS[array].join(" + ")} = ${shown(a.value)} + ${signed(b.value)}`, [a, b]);
  }
  if (array in NORMS) {
    const [layer, from] = NORMS[array];
    const { mean, std } = moments(pass[from][t], epsilon);
    const [g, b] = [weight(`${layer}.weight`, i, 0), weight(`${layer}.bias`, i, 0)];
    const sources = [...pass[from][t].keys()].map((c) => at(from, t, c));
    const filled = `(${shown(pass[from][t][i])} − ${signed(mean)}) / ${shown(std)} · ${text(g)}${b.value === null ? "" : ` + ${text(b)}`}`;
    return own(value, `(${from} − mean) / √(variance + ${epsilon}) · weight + bias = ${filled}`, [...sources, g, b]);
  }
  if (array in LINEARS) {
    const [layer, from, part] = LINEARS[array];
    const o = part * C + i; // which output of the layer
    const inputs = [...pass[from][t].keys()].map((c) => at(from, t, c));
    const weights = inputs.map((_, c) => weight(`${layer}.weight`, o, c));
    const bias = weight(`${layer}.bias`, o, 0);
    const last = bias.value === null ? "" : ` + ${text(bias)}`;
    return own(value, `${layer}.weight[${o}]·${from}${last && " + bias"} = ${products(weights, inputs)}${last}`, [...inputs, ...weights, bias]);
  }
  if (array === "y") {
    const h = Math.floor((i * H) / C);
    const shares = Array.from(pass.att[t][h].slice(0, t + 1), (share, s) => ({ array: "att", h, t, i: s, value: share }));
    const most = [...shares].sort((a, b) => b.value - a.value).slice(0, 3);
    const rest = t > 2 ? " + …" : "";
    const sources = [...shares.filter((share) => share.value > 0.01), ...most.map((share) => at("v", share.i, i))];
    return own(value, `Σ att·v = ${products(most, most.map((share) => at("v", share.i, i)))}${rest}`, sources);
  }
  if (array === "gelu") return own(value, `GELU(${shown(pass.c_fc[t][i])})`, [at("c_fc", t, i)]);
  const logit = at("logits", t, i);
  const best = Math.max(...pass.logits[t]);
  return own(value, `softmax = e^(${shown(logit.value)} − ${shown(best)}) / Σ`, [logit]); // probs
}

function explainAttention(model, pass, { h, t, i }, at) {
  const D = model.config.n_embd / model.config.n_head;
  const channels = Array.from({ length: D }, (_, c) => h * D + c);
  const [q, k] = [channels.map((c) => at("q", t, c)), channels.map((c) => at("k", i, c))];
  const score = q.reduce((sum, source, c) => sum + source.value * k[c].value, 0) / Math.sqrt(D);
  const formula = `softmax(q·k/√${D}), q·k/√${D} = (${products(q, k)}) / √${D} = ${shown(score)}`;
  return { name: `att[${h}, ${t}, ${i}]`, value: pass.att[t][h][i], formula, sources: [...q, ...k] };
}

/** A weight as the source of a number; its value is null where the model has no such bias, or no weights at all. */
function weightAt(model, name, r, c) {
  const w = model.w?.[name];
  const columns = w && w.shape.length > 1 ? w.shape[1] : 1;
  const value = w ? w[r * columns + c] : model.w || (name.endsWith("bias") && !model.config.bias) ? null : undefined;
  // The two names of a tied weight are one place.
  return { array: name === "lm_head.weight" && model.config.tie_weights ? "w:wte.weight" : `w:${name}`, t: r, i: c, value };
}

function weightName({ array, t, i }) {
  return /bias|ln_/.test(array) ? `${array.slice(2)}[${t}]` : `${array.slice(2)}[${t}, ${i}]`;
}

/** "a₁·b₁ + a₂·b₂ + … + aₙ·bₙ": all terms of a short sum, the first and the last ones of a long one. */
function products(a, b) {
  const terms = a.map((source, n) => `${text(source)}·${signed(b[n].value)}`);
  return (terms.length > 5 ? [...terms.slice(0, 3), "…", terms[terms.length - 1]] : terms).join(" + ");
}

const text = (source) => (source.value === undefined ? "w" : signed(source.value));
const signed = (value) => (value < 0 ? `(${shown(value)})` : shown(value));
