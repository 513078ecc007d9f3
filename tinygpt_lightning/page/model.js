"use strict";
// GPT-2 with one transformer block, in plain JavaScript: the arithmetic of gpt/model.py with its names and shapes.
//
// PyTorch computes all positions at once. Here they come one after another, which gives the same numbers, since no
// position looks at a later one. What is computed for a position is never computed again: a `pass` keeps it, so that
// a new character costs one position.
//
// Shapes: T time, C channels (n_embd), H heads, I hidden units of the MLP (n_inner), V vocabulary.

// ---- The model: weights and vocabulary ------------------------------------------------------------------------------

/**
 * The model in a page's data.
 *
 * @param data What page.py wrote: config, symbols, end, shapes, weights (null where a pass is recorded instead).
 * @returns {config, symbols, ids: Map from symbol to id, end, w: weights by their names in model.py}.
 */
function readModel(data) {
  const ids = new Map(data.symbols.map((symbol, id) => [symbol, id]));
  const w = data.weights === null ? null : readWeights(data, data.weights);
  return { config: data.config, symbols: data.symbols, ids, end: data.end, w };
}

/** The weights in `text`, by name; each is flat, row by row, and has its shape as a property. */
function readWeights(data, text) {
  const all = floats(text, 4);
  const w = {};
  let start = 0;
  for (const [name, shape] of data.shapes) {
    const size = shape.reduce((product, n) => product * n, 1);
    w[name] = Object.assign(all.slice(start, start + size), { shape });
    start += size;
  }
  if (data.config.tie_weights) w["lm_head.weight"] = w["wte.weight"];
  return w;
}

/** Base64 of little-endian numbers of `size` bytes, 2 or 4, as single precision. */
function floats(text, size) {
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const values = new Uint8Array(128);
  for (let i = 0; i < 64; i++) values[digits.charCodeAt(i)] = i;
  const length = (text.length / 4) * 3 - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0);
  const bytes = new Uint8Array(length);
  for (let i = 0, j = 0; j < length; i += 4, j += 3) {
    const [a, b, c, d] = [0, 1, 2, 3].map((n) => values[text.charCodeAt(i + n)]);
    bytes[j] = (a << 2) | (b >> 4); // beyond the end, writing does nothing
    bytes[j + 1] = (b << 4) | (c >> 2);
    bytes[j + 2] = (c << 6) | d;
  }
  const view = new DataView(bytes.buffer);
  if (size === 4) return Float32Array.from({ length: length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  return Float32Array.from({ length: length / 2 }, (_, i) => half(view.getUint16(2 * i, true)));
}

/** A half-precision number, given its 16 bits (IEEE 754). */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction;
  return bits & 0x8000 ? -size : size;
}

/**
 * Text to ids, in Unicode's composed form, one for each character.
 *
 * @throws Error with `character`, the first one that the vocabulary lacks.
 */
function encode(model, text) {
  return [...text.normalize("NFC")].map((character) => {
    const id = model.ids.get(character);
    if (id === undefined) throw Object.assign(new Error("unknown character"), { character });
    return id;
  });
}

// ---- Layers ---------------------------------------------------------------------------------------------------------

/** nn.Linear: x (in) to (out); weight (out, in), row by row; bias (out), or none. */
function linear(x, weight, bias) {
  const out = new Float64Array(weight.length / x.length);
  for (let o = 0, i = 0; o < out.length; o++) {
    let sum = bias ? bias[o] : 0;
    for (let c = 0; c < x.length; c++, i++) sum += weight[i] * x[c];
    out[o] = sum;
  }
  return out;
}

/** Mean of x, and what LayerNorm divides by: √(variance + epsilon). */
function moments(x, epsilon) {
  let mean = 0;
  for (const value of x) mean += value / x.length;
  let variance = 0;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  return { mean, std: Math.sqrt(variance + epsilon) };
}

/** nn.LayerNorm: x (C) to (C). */
function layerNorm(x, weight, bias, epsilon) {
  const { mean, std } = moments(x, epsilon);
  return x.map((value, c) => ((value - mean) / std) * weight[c] + (bias ? bias[c] : 0));
}

/** GPT-2's GELU, the tanh approximation (Hendrycks and Gimpel 2016, section 2). */
function gelu(x) {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

/** Scores to probabilities; the largest is subtracted first, so that nothing overflows. */
function softmax(scores) {
  let largest = -Infinity;
  for (const score of scores) largest = Math.max(largest, score);
  const out = scores.map((score) => Math.exp(score - largest));
  let sum = 0;
  for (const value of out) sum += value;
  return out.map((value) => value / sum);
}

const add = (a, b) => a.map((value, i) => value + b[i]);

// ---- The forward pass -----------------------------------------------------------------------------------------------

/** What a pass keeps of each position: a row under each of these names; and under `att` one of each head. */
const ROWS = [
  "wte", "wpe", "x", "ln_1", "q", "k", "v", "y", "attn", "x_attn", "ln_2", "c_fc", "gelu", "mlp", "x_mlp", "ln_f",
  "logits", "probs",
]; // prettier-ignore

/** A pass that has read nothing yet. */
function newPass() {
  return Object.fromEntries(["ids", "att", ...ROWS].map((name) => [name, []]));
}

/**
 * Read one more character: what TinyGPT.forward computes for its position.
 *
 * @param model The model.
 * @param pass What the positions before it left behind; this one's rows are appended.
 * @param id The character.
 * @param off Parts that are taken out: a set of "wte", "wpe", "attn", "mlp", and "head 0", "head 1", ….
 */
function read(model, pass, id, off = new Set()) {
  const { n_embd: C, n_head: H, layer_norm_epsilon: epsilon } = model.config;
  const w = model.w;
  const t = pass.ids.length;
  const zeros = new Float64Array(C);

  const wte = off.has("wte") ? zeros : row(w["wte.weight"], id, C); // (C)
  const wpe = off.has("wpe") ? zeros : row(w["wpe.weight"], t, C); // (C)
  const x = add(wte, wpe); // (C)

  // Attention: this position asks, with q, all positions so far, which answer with k and hand over v.
  const ln_1 = layerNorm(x, w["h.ln_1.weight"], w["h.ln_1.bias"], epsilon); // (C)
  const qkv = linear(ln_1, w["h.attn.c_attn.weight"], w["h.attn.c_attn.bias"]); // (3·C)
  const [q, k, v] = [qkv.slice(0, C), qkv.slice(C, 2 * C), qkv.slice(2 * C)]; // (C) each, head beside head
  pass.k.push(k);
  pass.v.push(v);
  const D = C / H; // channels of a head
  const y = new Float64Array(C); // the heads' results, head beside head
  const att = []; // (H, t + 1)
  for (let h = 0; h < H; h++) {
    const scores = new Float64Array(t + 1); // (t + 1)
    for (let s = 0; s <= t; s++) {
      for (let c = h * D; c < (h + 1) * D; c++) scores[s] += (q[c] * pass.k[s][c]) / Math.sqrt(D);
    }
    att[h] = softmax(scores);
    if (off.has(`head ${h}`)) continue; // it adds nothing
    for (let s = 0; s <= t; s++) {
      for (let c = h * D; c < (h + 1) * D; c++) y[c] += att[h][s] * pass.v[s][c];
    }
  }
  const attn = off.has("attn") ? zeros : linear(y, w["h.attn.c_proj.weight"], w["h.attn.c_proj.bias"]); // (C)
  const x_attn = add(x, attn); // (C)

  // MLP: each position by itself.
  const ln_2 = layerNorm(x_attn, w["h.ln_2.weight"], w["h.ln_2.bias"], epsilon); // (C)
  const c_fc = linear(ln_2, w["h.mlp.c_fc.weight"], w["h.mlp.c_fc.bias"]); // (I)
  const hidden = c_fc.map(gelu); // (I)
  const mlp = off.has("mlp") ? zeros : linear(hidden, w["h.mlp.c_proj.weight"], w["h.mlp.c_proj.bias"]); // (C)
  const x_mlp = add(x_attn, mlp); // (C)

  const ln_f = layerNorm(x_mlp, w["ln_f.weight"], w["ln_f.bias"], epsilon); // (C)
  const logits = linear(ln_f, w["lm_head.weight"]); // (V)
  const probs = softmax(logits); // (V)

  const rows = { wte, wpe, x, ln_1, q, y, attn, x_attn, ln_2, c_fc, gelu: hidden, mlp, x_mlp, ln_f, logits, probs };
  for (const name in rows) pass[name].push(rows[name]);
  pass.ids.push(id);
  pass.att.push(att);
}

/** Row `i` of a weight with C columns, in double precision, in which everything is computed. */
const row = (weight, i, C) => Float64Array.from(weight.subarray(i * C, (i + 1) * C));

/** The pass over `ids`. */
function forward(model, ids, off) {
  const pass = newPass();
  for (const id of ids) read(model, pass, id, off);
  return pass;
}

/** The likeliest next character after position `t`; among equals the first, as torch.argmax does. */
function greedy(pass, t = pass.ids.length - 1) {
  const logits = pass.logits[t];
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  return best;
}

/**
 * Continue a prompt greedily.
 *
 * @param length The text does not go beyond it, in symbols; the end symbol ends it too.
 * @returns {ids: of prompt and continuation, pass: over all of them but the last, which nobody reads}.
 */
function generate(model, prompt, length, off) {
  const pass = forward(model, prompt.slice(0, length), off);
  const ids = [...pass.ids];
  while (ids.length < length && ids[ids.length - 1] !== model.end) {
    if (pass.ids.length < ids.length) read(model, pass, ids[ids.length - 1], off);
    ids.push(greedy(pass));
  }
  return { ids, pass };
}

/** A pass that was recorded, as page.py wrote it: rows, from which sums and shares follow. */
function recordedPass(model, { text, rows }) {
  const pass = newPass();
  const cut = (numbers, n) => Array.from({ length: n }, (_, i) => numbers.slice((i * numbers.length) / n, ((i + 1) * numbers.length) / n));
  for (const [name, [T, content]] of Object.entries(rows)) pass[name] = cut(Float64Array.from(floats(content, 2)), T);
  pass.ids = encode(model, text).slice(0, pass.wte.length);
  pass.att = pass.att.map((shares) => cut(shares, model.config.n_head)); // (T, H, T)
  pass.x = pass.wte.map((row, t) => add(row, pass.wpe[t]));
  pass.x_attn = pass.x.map((row, t) => add(row, pass.attn[t]));
  pass.x_mlp = pass.x_attn.map((row, t) => add(row, pass.mlp[t]));
  pass.probs = pass.logits.map(softmax);
  return pass;
}
