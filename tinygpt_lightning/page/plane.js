// Models of width 2 and 3: what LayerNorm sees of a vector can be drawn.
//
// LayerNorm takes the mean away and divides by the size. Of two numbers a and b only one is left then, z, which is
// (a - b) / 2 over √(((a - b) / 2)² + epsilon): where a point lies from left to right. The mean, which LayerNorm
// ignores, is how high it lies. Every score is a straight line over z. Of three numbers two are left: a plane, in which
// each character that can win has a region with straight edges.

/** Where a vector (C) is drawn. */
function seen(model, x) {
  const { mean, std } = moments(x, model.config.layer_norm_epsilon);
  const n = x.map((value) => (value - mean) / std);
  if (x.length === 2) return [n[0], mean];
  return [(n[0] - n[1]) / Math.SQRT2, (n[0] + n[1] - 2 * n[2]) / Math.sqrt(6)];
}

/** Scores of all characters (V), given what LayerNorm made of a vector: (C), before its weight and bias. */
function scoresAt(model, normalised) {
  const [weight, bias] = [model.w["ln_f.weight"], model.w["ln_f.bias"]];
  const x = Float64Array.from(normalised, (value, c) => value * weight[c] + (bias ? bias[c] : 0));
  return linear(x, model.w["lm_head.weight"]);
}

const normalised = (place, C) =>
  C === 2
    ? [place[0], -place[0]]
    : [
        place[0] / Math.SQRT2 + place[1] / Math.sqrt(6),
        -place[0] / Math.SQRT2 + place[1] / Math.sqrt(6),
        (-2 * place[1]) / Math.sqrt(6),
      ];

const highest = (scores) => scores.reduce((best, score, id) => (score > scores[best] ? id : best), 0);

/** The points of position t on its way: embedding, with attention, with MLP, and on LayerNorm's line. */
function path(model, pass, t) {
  const points = ["x", "x_attn", "x_mlp"].map((name) => seen(model, pass[name][t]));
  return [...points, model.config.n_embd === 2 ? [points[2][0], 0] : points[2]];
}

/** A place `along` a path, from 0 to 3. */
function between(points, along) {
  const from = Math.min(Math.floor(along), 2);
  return points[from].map((value, n) => value + (points[from + 1][n] - value) * (along - from));
}

/** What is drawn from left to right and from bottom to top, with some room: of all points of a pass. */
function bounds(model, pass) {
  const places = pass.x.flatMap((_, t) => path(model, pass, t));
  return [0, 1].map((n) => {
    const values = places.map((place) => place[n]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = 0.06 * (high - low) || 1;
    return [low - room, high + room];
  });
}

/** Which character wins at each of `n` places from left to right: runs of {id, from, to} in z. */
function stripes(model, [low, high], n = 1200) {
  const runs = [];
  for (let i = 0; i <= n; i++) {
    const z = low + ((high - low) * i) / n;
    const id = highest(scoresAt(model, normalised([z], 2)));
    if (runs.length && runs[runs.length - 1].id === id) runs[runs.length - 1].to = z;
    else runs.push({ id, from: runs.length ? runs[runs.length - 1].to : z, to: z });
  }
  return runs;
}

/** The frame of a picture: pixels for numbers. */
function frame(canvas, height, [left, right], [bottom, top]) {
  const width = canvas.parentElement.clientWidth;
  const context = sized(canvas, width, height);
  context.textAlign = "center";
  context.textBaseline = "middle";
  const x = (value) => ((value - left) / (right - left)) * width;
  const y = (value) => height - ((value - bottom) / (top - bottom)) * height;
  return { context, width, height, x, y };
}

/** The points of all positions, over stripes or regions. */
function drawPlane(canvas, view) {
  const { model, pass, t, along, bounds: area } = view;
  const C = model.config.n_embd;
  const width = canvas.parentElement.clientWidth;
  const { context, height, x, y } = frame(canvas, C === 2 ? Math.min(300, width * 0.8) : Math.min(width, 520), ...area);
  const winner = greedy(pass, t);
  if (C === 2) drawStripes(context, view, x, height, winner);
  else drawRegions(context, view, width, height, winner);
  context.strokeStyle = css("--quiet");
  context.setLineDash([4, 4]);
  if (C === 2) line(context, [0, y(0)], [width, y(0)]);
  context.setLineDash([]);
  pass.x.forEach((_, s) => {
    const [a, b] = between(path(model, pass, s), along);
    dot(context, x(a), y(b), 3, s < t ? css("--quiet") : css("--line"));
  });
  const points = path(model, pass, t);
  context.lineWidth = 2.5;
  points.slice(0, Math.ceil(along)).forEach((point, n) => {
    context.strokeStyle = css(["--attention", "--mlp", "--quiet"][n]);
    arrow(context, [x(point[0]), y(point[1])], between(points, Math.min(along, n + 1)).map((value, axis) => [x, y][axis](value)));
  });
  const [a, b] = between(points, along);
  labels(context, view, points.map((point) => [x(point[0]), y(point[1])]), [x(a), y(b)], width, height);
  dot(context, x(a), y(b), 7, css("--accent"));
}

/** Names of the stations beside the path of the chosen point, each where it hides neither another one nor the point. */
function labels(context, { along, words, symbol }, points, [pointX, pointY], width, height) {
  context.font = "13px system-ui, sans-serif";
  context.textBaseline = "middle";
  const taken = [[pointX - 8, pointX + 8, pointY]];
  points.slice(0, Math.floor(along) + 1).forEach(([px, py], n) => {
    if (n === 3) return; // on the line it is said by the stripe
    const text = n === 0 ? `${symbol}: ${words[0]}` : words[n];
    const half = context.measureText(text).width / 2;
    const middle = Math.max(half + 2, Math.min(width - half - 2, px));
    const isFree = (y) => y >= 32 && y <= height - 10 && !taken.some(([left, right, other]) => middle + half > left && middle - half < right && Math.abs(other - y) < 16);
    const at = [-16, 16, -32, 32, -48, 48, -64, 64].map((shift) => py + shift).find(isFree) ?? Math.max(32, py - 80);
    taken.push([middle - half, middle + half, at]);
    context.fillStyle = css("--back");
    context.globalAlpha = 0.8;
    context.fillRect(middle - half - 2, at - 8, 2 * half + 4, 16);
    context.globalAlpha = 1;
    context.fillStyle = css("--ink");
    context.fillText(text, middle, at);
  });
}

function drawStripes(context, { model, areas: runs }, x, height, winner) {
  runs.forEach(({ id, from, to }, n) => {
    const [left, right] = [x(from), x(to)];
    context.fillStyle = id === winner ? css("--winner") : css(n % 2 ? "--none" : "--back");
    context.fillRect(left, 0, right - left, height);
    context.fillStyle = css(id === winner ? "--ink" : "--quiet");
    context.font = `${id === winner ? "bold 17px" : `${Math.min(15, right - left + 4)}px`} system-ui, sans-serif`;
    if (right - left > 5 || id === winner) context.fillText(visible(model.symbols[id]), (left + right) / 2, 12);
  });
}

/** Which character wins in each cell of a grid over the plane, by rows from the top. */
function regions(model, [[left, right], [bottom, top]], n = 104) {
  const at = (low, high, i) => low + ((high - low) * i) / n;
  const winner = (a, b) => highest(scoresAt(model, normalised([a, b], 3)));
  return Array.from({ length: n }, (_, row) => Array.from({ length: n }, (_, i) => winner(at(left, right, i), at(top, bottom, row))));
}

function drawRegions(context, { model, areas }, width, height, winner) {
  const size = [width / areas.length, height / areas.length];
  const [chosen, ...others] = ["--winner", "--back", "--none", "--third"].map(css);
  const middles = new Map();
  areas.forEach((row, j) =>
    row.forEach((id, i) => {
      const sum = middles.get(id) || middles.set(id, [0, 0, 0]).get(id);
      [sum[0], sum[1], sum[2]] = [sum[0] + i, sum[1] + j, sum[2] + 1];
      context.fillStyle = id === winner ? chosen : others[(id * 7) % 3];
      context.fillRect(i * size[0], j * size[1], size[0] + 1, size[1] + 1);
    }),
  );
  context.font = "bold 14px system-ui, sans-serif";
  for (const [id, [i, j, n]] of middles) {
    context.fillStyle = css(id === winner ? "--ink" : "--quiet");
    if (n > 6) context.fillText(visible(model.symbols[id]), (i / n) * size[0], (j / n) * size[1]);
  }
}

/** Scores over z: one straight line for each character, the upper envelope thick; for width 2. */
function drawLines(canvas, view) {
  const { model, pass, t, bounds: [area], areas: runs } = view;
  const [left, right] = area;
  const [first, last] = [left, right].map((z) => scoresAt(model, normalised([z], 2)));
  const score = (id, z) => first[id] + ((last[id] - first[id]) * (z - left)) / (right - left);
  const top = Math.max(...first, ...last);
  const lowest = Math.min(...runs.map(({ id, from, to }) => Math.min(score(id, from), score(id, to))));
  const { context, width, height, x, y } = frame(canvas, 260, area, [lowest - (top - lowest) * 0.35, top + (top - lowest) * 0.05]);
  const winner = greedy(pass, t);
  context.lineWidth = 1;
  context.strokeStyle = css("--line");
  for (let id = 0; id < first.length; id++) line(context, [0, y(first[id])], [width, y(last[id])]);
  context.lineWidth = 3;
  context.strokeStyle = css("--ink");
  for (const { id, from, to } of runs) line(context, [x(from), y(score(id, from))], [x(to), y(score(id, to))]);
  context.lineWidth = 2;
  context.strokeStyle = css("--accent");
  line(context, [0, y(first[winner])], [width, y(last[winner])]);
  const z = seen(model, pass.x_mlp[t])[0];
  line(context, [x(z), 0], [x(z), height]);
  dot(context, x(z), y(score(winner, z)), 6, css("--accent"));
  context.fillStyle = css("--ink");
  context.font = "bold 16px system-ui, sans-serif";
  context.fillText(visible(model.symbols[winner]), x(z) + (x(z) > width - 30 ? -16 : 16), Math.min(height - 12, y(score(winner, z)) + 22));
  return { z, winner };
}

/** The loss over steps, on a logarithmic scale, with the boundaries of stages and the chosen moment. */
function drawLosses(canvas, moments, boundaries, chosen) {
  const logs = moments.map(({ loss }) => Math.log10(Math.max(loss, 1e-12)));
  const steps = moments.map(({ step }) => step);
  const [low, high] = [Math.floor(Math.min(...logs)), Math.ceil(Math.max(...logs))];
  const { context, width, height, x, y } = frame(canvas, 180, [-0.12 * steps[steps.length - 1], 1.04 * steps[steps.length - 1]], [low - 0.2, high + 0.2]);
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = css("--quiet");
  context.strokeStyle = css("--line");
  for (let power = low; power <= high; power++) {
    line(context, [x(0), y(power)], [width, y(power)]);
    context.fillText(power < -3 || power > 3 ? `1e${power}` : String(10 ** power), x(0) - 22, y(power));
  }
  context.strokeStyle = css("--quiet");
  for (const step of boundaries) line(context, [x(step), 0], [x(step), height]);
  context.strokeStyle = css("--mlp");
  context.lineWidth = 2;
  for (let n = 1; n < logs.length; n++) line(context, [x(steps[n - 1]), y(logs[n - 1])], [x(steps[n]), y(logs[n])]);
  logs.forEach((log, n) => dot(context, x(steps[n]), y(log), n === chosen ? 7 : 2, css(n === chosen ? "--accent" : "--mlp")));
}

function line(context, from, to) {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function arrow(context, from, to) {
  const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
  line(context, from, to);
  if (Math.hypot(to[0] - from[0], to[1] - from[1]) < 8) return;
  for (const turn of [-2.6, 2.6]) line(context, to, [to[0] + 8 * Math.cos(angle + turn), to[1] + 8 * Math.sin(angle + turn)]);
}

function dot(context, x, y, radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}
