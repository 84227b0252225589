// Sends one prompt to two samplers, and draws both canvases as their steps arrive. Whatever a model or a server sends
// is set as text, never as markup.

import { eventData, givenTexts, Problem, request, textsOf } from "./api.js";

const byId = (id) => document.getElementById(id);
const SIDES = ["left", "right"];
const BOUNDS = [0.01, 0.1, 0.3, 1]; // nats, between the classes h0 to h4; the legend in index.html names them
const FIGURES = { // of the report: label
  steps: "steps", forwards: "forwards", rows: "rows", bypassed_steps: "bypassed", cumulative_entropy: "total, nats",
};

let samplers = new Map(); // name: whether it streams its canvas
let runs = []; // of the last press of the button, one per side
let shown = 0; // steps that the canvases show
let following = true; // the newest step, until the reader picks another
let aborting = new AbortController();
let replaying = 0; // the timer, 0 where nothing is replayed
let drawing = 0; // the animation frame asked for, 0 if none

async function complete(run, sent) {
  const whole = !samplers.get(run.sampler); // its text is final only at the end
  const knobs = whole ? { return_trajectory: 1 } : { stream_mode: "canvas" };
  const body = { ...sent.body, stream: true, vllm_xargs: { ...sent.knobs, sampler: run.sampler, ...knobs } };
  const response = await request("v1/completions", { ...sent, body });
  let ended = false;
  let reason;
  for await (const data of eventData(response.body)) {
    if ((ended = data === "[DONE]")) break;
    const { choices, error } = JSON.parse(data);
    if (error) throw new Problem(error.message);
    run.steps.push(...(choices[0]?.infogain_steps ?? []));
    run.report = choices[0]?.infogain ?? run.report;
    reason = choices[0]?.finish_reason ?? reason;
    follow();
  }
  if (!ended) throw new Problem("the connection ended before the answer did.");
  if (reason === "abort") throw new Problem("the server ended it early: did it take longer than request_timeout?");
  if (!run.report) throw new Problem("the answer has no report: was the server started with --plugin infogain?");
  if (whole) { // a report names tokens by their ids
    const { trajectory } = run.report;
    const text = await textsOf(trajectory.flatMap((step) => step.tokens), sent);
    run.steps = trajectory.map((step) => ({ ...step, text: step.tokens.map((id) => text.get(id)) }));
  }
  follow();
}

// The form.

function field(id) {
  const input = byId(id);
  if (input.validity.badInput) throw new Problem(`${input.labels[0].firstChild.data.trim()}: give a number.`);
  return input.value === "" ? undefined : Number(input.value); // undefined: left out, the server's default holds
}

async function start() {
  aborting.abort();
  stopReplay();
  following = true;
  const mine = (aborting = new AbortController());
  const { signal } = mine;
  const key = byId("key").value; // lives in the field only
  say("", "Running…");
  byId("stop").disabled = false;
  try {
    const body = { prompt: byId("prompt").value, temperature: field("temperature"), seed: field("seed"),
      max_tokens: field("max_tokens") };
    const knobs = { tokens_per_step: field("tokens_per_step"), block_length: field("block_length") };
    const { data } = await (await request("v1/models", { key, signal })).json();
    body.model = byId("model").textContent = data[0].id;
    const sent = { body, knobs, key, signal };
    const given = await givenTexts(sent);
    runs = SIDES.map((side) => newRun(byId(side).value, given, given.length || body.max_tokens || 0));
    byId("runs").replaceChildren(...runs.map((run) => run.panel));
    byId("given").hidden = !given.length;
    byId("results").hidden = false;
    shown = 0;
    draw();
    byId("results").scrollIntoView({ block: "nearest" });
    const results = await Promise.allSettled(runs.map((run) => complete(run, sent)));
    if (mine !== aborting) return; // another run has begun
    const words = results.map(({ reason }) => reason ? explain(reason) : "");
    const lines = runs.map(({ sampler }, side) => words[side] && `${sampler}: ${words[side]}`).filter(Boolean);
    say(words[0] === words[1] ? words[0] : lines.join("\n"), ending(signal, lines.length));
    runs.forEach((run) => { run.ended = true; });
    byId("results").hidden = runs.every((run) => !run.steps.length);
    draw();
  } catch (error) {
    if (mine !== aborting) return;
    byId("results").hidden = true; // those of an earlier run
    say(explain(error), ending(signal, 1));
  } finally {
    if (mine === aborting) byId("stop").disabled = true;
  }
}

function explain(error) {
  if (error.name === "AbortError") return "";
  if (!(error instanceof Problem)) console.error(error);
  return error.message;
}

function ending(signal, problems) {
  if (signal.aborted) return "Stopped.";
  return problems ? "Not done." : "Done.";
}

function say(problem, status) {
  byId("problem").textContent = problem;
  byId("status").textContent = status;
}

// What is drawn.

function newRun(sampler, given, length) {
  const panel = byId("panel").content.cloneNode(true).firstElementChild;
  const part = (name) => panel.querySelector(name);
  const run = { sampler, panel, given, length, steps: [], report: null, ended: false, pointed: null, cells: [],
    canvas: part("ol"), note: part(".note"), cellNote: part(".cell-note"), svg: part("svg"), figures: part("dl") };
  part("h2").textContent = sampler;
  run.canvas.setAttribute("aria-label", `Canvas of ${sampler}`);
  const point = (cell) => { run.pointed = run.cells.indexOf(cell.closest(".cell")); draw(); };
  run.canvas.addEventListener("focusin", ({ target }) => point(target));
  run.canvas.addEventListener("pointerover", ({ target }) => target !== run.canvas && point(target));
  run.canvas.addEventListener("keydown", (event) => {
    const last = run.cells.length - 1;
    const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -last, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    run.cells[Math.min(last, Math.max(0, run.cells.indexOf(event.target) + moves[event.key]))].focus();
  });
  return run;
}

const most = () => Math.max(0, ...runs.map((run) => run.steps.length));

/** Draw what is new, once per frame however much arrives. */
function follow() {
  if (following) shown = most();
  drawing ||= requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  byId("step").max = most();
  byId("step").value = shown;
  byId("step").ariaValueText = byId("shown").textContent = `${shown} of ${most()}`;
  const curves = runs.map((run) => sums(run.steps));
  const nats = niceCeiling(Math.max(0, ...curves.map((curve) => curve.at(-1))));
  const canvases = runs.map(written);
  runs.forEach((run, side) => {
    const step = Math.min(shown, run.steps.length);
    drawCanvas(run, step, canvases[side], canvases[1 - side]);
    drawNotes(run, step, curves[side]);
    drawCurve(run.svg, curves[side], curves[1 - side], step, Math.max(1, most()), nats, runs[1 - side].sampler);
    run.figures.replaceChildren(...Object.entries(run.report ? FIGURES : {}).map(([name, label]) => {
      const value = name === "cumulative_entropy" ? run.report[name].toFixed(4) : run.report[name];
      return element("div", {}, element("dt", {}, label), element("dd", { "data-figure": name }, value));
    }));
  });
}

/** By position: the token, and the step that wrote it; what was given, by step 0. */
function written(run) {
  const tokens = run.given.map((text) => text === undefined ? text : { text, step: 0 });
  run.steps.forEach(({ positions, text, entropies }, index) => positions.forEach((position, i) => {
    tokens[position] = { text: text[i], entropy: entropies[i], step: index + 1 };
  }));
  return tokens;
}

function drawCanvas(run, step, tokens, others) {
  const length = Math.max(run.length, tokens.length);
  run.canvas.classList.toggle("long", length > 20);
  while (run.cells.length < length) {
    run.cells.push(element("li", { class: "cell", role: "option", tabindex: run.cells.length ? -1 : 0 }));
    run.canvas.append(run.cells.at(-1));
  }
  run.cells.forEach((cell, position) => {
    const token = tokens[position];
    const isFilled = token?.step <= step;
    const isGiven = token?.step === 0;
    const differs = isFilled && others[position]?.step <= shown && others[position].text !== token.text;
    const face = isFilled ? faceOf(token.text) : { text: "·", kind: "masked" };
    // Places follow the newest state, whatever step is shown, so that nothing moves in a replay.
    const breaks = tokens[position - 1]?.text.endsWith("\n");
    cell.style.gridColumn = `${breaks ? "1 / " : ""}span ${token ? faceOf(token.text).columns : 1}`;
    cell.textContent = face.text;
    cell.className = ["cell", face.kind, isGiven ? "given" : isFilled && classOf(token.entropy),
      isFilled && !isGiven && token.step === step && "newest", differs && "differs"].filter(Boolean).join(" ");
    cell.tabIndex = position === (run.pointed ?? 0) ? 0 : -1;
    cell.setAttribute("aria-selected", position === run.pointed);
    const how = isGiven ? "given" : `written in step ${token?.step} at ${token?.entropy.toFixed(4)} nats`;
    cell.ariaLabel = `Position ${position}: ${isFilled ? `${JSON.stringify(token.text)}, ${how}` : "masked"}`
      + (differs ? `; the other side has ${JSON.stringify(others[position].text)}` : "");
  });
}

const classOf = (entropy) => `h${BOUNDS.filter((bound) => entropy >= bound).length}`;

/** How a token looks in a cell: special ones by their name, white space by a sign. */
function faceOf(text) {
  const special = /^<\|(.+)\|>$/s.exec(text);
  const face = special ? special[1] : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
  const columns = Math.min(4, Math.ceil((face.length * (special ? 0.75 : 1) + 1) / 4)); // of a grid of 2.1rem
  return { text: face, kind: special ? "special" : "", columns };
}

function drawNotes(run, step, curve) {
  const { positions, objective, chosen, bypassed } = run.steps[step - 1] ?? {};
  const why = samplers.get(run.sampler) ? "the first step." : "the end: nothing this sampler writes is sure to stay.";
  let words = `Waiting for ${why}`;
  if (run.ended || run.steps.length) words = run.steps.length ? "Nothing is written yet." : "No answer.";
  if (positions) {
    const how = bypassed ? "sure enough, no look-ahead"
      : objective?.length ? `best of ${objective.length} candidates, J = ${objective[chosen].toFixed(3)}` : "";
    const places = positions.length > 8 ? `${positions.length} positions`
      : `${positions.length === 1 ? "position" : "positions"} ${positions.join(", ")}`;
    words = `Step ${step}: ${places}${how && `; ${how}`}. ${curve[step].toFixed(3)} nats so far.`;
  }
  run.note.textContent = words;
  const hint = "Point at a token, or use the arrow keys, for its numbers.";
  run.cellNote.textContent = run.cells[run.pointed]?.ariaLabel ?? hint;
}

/** Running sums of the steps' entropies, from 0: [steps + 1] nats. */
function sums(steps) {
  const totals = [0];
  for (const { entropies } of steps) totals.push(totals.at(-1) + entropies.reduce((sum, nats) => sum + nats, 0));
  return totals;
}

function niceCeiling(value) {
  const scale = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * scale >= value) * scale;
}

function drawCurve(svg, own, other, step, last, nats, otherName) {
  const { width, height } = svg.getBoundingClientRect();
  const [left, right, bottom] = [32, width - 8, height - 20]; // of the plot, in CSS pixels
  const x = (steps) => left + ((right - left) * steps) / last;
  const y = (sum) => bottom - ((bottom - 8) * sum) / nats;
  const points = (curve) => curve.map((sum, steps) => `${x(steps)},${y(sum)}`).join(" ");
  const line = (curve, kind) => shape("polyline", { class: kind, points: points(curve) });
  const grid = [0, nats / 2, nats].flatMap((value) => [
    shape("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }),
    shape("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, +value.toPrecision(2)),
  ]);
  const ends = [[0, "middle"], [last, "end"]].map(([value, anchor]) =>
    shape("text", { x: x(value), y: height - 4, "text-anchor": anchor }, value ? `step ${value}` : value));
  const [now, total] = [own[step], own.at(-1)].map((sum) => sum.toFixed(3));
  svg.ariaLabel = `Cumulative entropy: ${now} nats after step ${step}, ${total} at the end`;
  const key = shape("text", { x: left + 6, y: 24 }, `dashed: ${otherName}`); // where no sum has a reason to be
  svg.replaceChildren(...grid, ...ends, key, line(other, "ghost"), line(own, "own"),
    shape("circle", { cx: x(step), cy: y(own[step]), r: 4.5 }));
}

function element(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
}

// Replay.

function stopReplay() {
  clearInterval(replaying);
  replaying = 0;
  byId("replay").textContent = "Replay";
}

function replay() {
  const wasReplaying = replaying;
  stopReplay();
  if (wasReplaying) return;
  following = false;
  shown = shown < most() ? shown : 0;
  draw();
  replaying = setInterval(() => {
    shown = Math.min(shown + 1, most());
    draw();
    if (shown === most()) stopReplay();
  }, Math.min(400, Math.max(40, 8000 / most())));
  byId("replay").textContent = "Pause";
}

// The page.

byId("form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
byId("stop").addEventListener("click", () => aborting.abort());
byId("replay").addEventListener("click", replay);
byId("step").addEventListener("input", ({ target }) => {
  stopReplay();
  shown = Number(target.value);
  following = shown === most();
  draw();
});
window.addEventListener("resize", follow);
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    byId("prompt").value = button.dataset.prompt;
    byId("max_tokens").value = button.dataset.tokens;
  });
}
document.querySelector("[data-prompt]").click();

try {
  const known = (await (await request("infogain/samplers", {})).json()).samplers;
  samplers = new Map(known.map(({ name, streams_canvas }) => [name, streams_canvas]));
  for (const side of SIDES) byId(side).append(...known.map(({ name }) => new Option(name)));
  byId("left").value = "entropy";
  byId("right").value = "info_gain";
} catch (error) {
  say(explain(error), "");
}
