// Sends one prompt to two samplers, and draws both runs as their steps arrive. Whatever a model or a server sends is
// set as text, never as markup.

import { eventData, givenTexts, isSolved, Problem, request, textsOf } from "./api.js";
import { drawCanvas, written } from "./canvas.js";
import { drawCurve, drawObjective, element, niceCeiling, sums } from "./charts.js";
import { mark, read, SIDES, setUp } from "./form.js";
import { drawPicture, paint } from "./picture.js";
import { Playback } from "./playback.js";

const byId = (id) => document.getElementById(id);
const FIGURES = { // of the report, or measured here: label, digits behind the point
  steps: ["steps"], forwards: ["forwards"], rows: ["rows"], seconds: ["seconds", 2],
  tokens_per_second: ["tokens / s", 0], bypassed_steps: ["bypassed"], cumulative_entropy: ["total, nats", 4],
};

let samplers = new Map(); // by name, as the server describes them
let runs = []; // those on the page, one per side
let aborting = new AbortController();
let drawing = 0; // the animation frame asked for, 0 if none

async function complete(run, sent, begin) {
  if (run.isPicture) {
    const asked = performance.now();
    await paint(run, sent, samplers.get(run.sampler)?.streams_canvas, begin, follow);
    measure(run, (performance.now() - asked) / 1000);
    return;
  }
  const whole = !samplers.get(run.sampler)?.streams_canvas; // its text is final only at the end
  const knobs = whole ? { return_trajectory: 1 } : { stream_mode: "canvas" };
  const body = { ...sent.body, stream: true, vllm_xargs: { ...run.knobs, ...knobs } };
  const asked = performance.now();
  const response = await request("v1/completions", { ...sent, body });
  begin(); // it is admitted
  let ended = false;
  let reason;
  for await (const data of eventData(response.body)) {
    if ((ended = data === "[DONE]")) break;
    const { choices, error } = JSON.parse(data);
    if (error) throw new Problem(error.message);
    run.steps.push(...(choices[0]?.infogain_steps ?? []));
    run.text += choices[0]?.text ?? "";
    run.report = choices[0]?.infogain ?? run.report;
    reason = choices[0]?.finish_reason ?? reason;
    follow();
  }
  if (!ended) throw new Problem("the connection ended before the answer did.");
  if (reason === "abort") throw new Problem("the server ended it early: did it take longer than request_timeout?");
  if (!run.report) throw new Problem("the answer has no report: was the server started with --plugin infogain?");
  const seconds = (performance.now() - asked) / 1000;
  if (whole) { // a report names tokens by their ids
    const { trajectory } = run.report;
    const text = await textsOf(trajectory.flatMap((step) => step.tokens), sent);
    run.steps = trajectory.map((step) => ({ ...step, text: step.tokens.map((id) => text.get(id)) }));
  }
  measure(run, seconds);
  if (run.text) run.solved = await isSolved(run.text, sent);
  follow();
}

function measure(run, seconds) {
  const tokens = run.steps.reduce((sum, { positions }) => sum + positions.length, 0);
  run.measured = { seconds, tokens_per_second: tokens / seconds };
  follow();
}

async function start() {
  aborting.abort();
  const mine = (aborting = new AbortController());
  const { signal } = mine;
  const key = byId("key").value; // lives in the field only
  const before = { runs, source: byId("source").textContent };
  say("", "Running…");
  byId("stop").disabled = false;
  try {
    const { body, sides } = read();
    const { data } = await (await request("v1/models", { key, signal })).json();
    body.model = byId("model").textContent = data[0].id;
    const sent = { body, key, signal };
    const isPicture = byId("kind").value === "picture";
    const given = isPicture ? [] : await givenTexts(sent);
    const length = isPicture ? 0 : given.length || body.max_tokens || 0;
    const made = sides.map((knobs) => Object.assign(newRun(knobs, given, length), { isPicture }));
    const begin = () => {
      if (runs === made || mine !== aborting) return;
      show(made, "");
      byId("results").scrollIntoView({ block: "nearest" });
    };
    const results = await Promise.allSettled(made.map((run) => complete(run, sent, begin)));
    if (mine !== aborting) return; // another run has begun
    const words = results.map(({ reason }) => reason ? explain(reason) : "");
    const lines = made.map(({ sampler }, side) => words[side] && `${sampler}: ${words[side]}`).filter(Boolean);
    say(words[0] === words[1] ? words[0] : lines.join("\n"), ending(signal, lines.length));
    mark(results.map(({ reason }) => reason));
    made.forEach((run) => { run.ended = true; });
    if (made.some((run) => run.steps.length || run.looks.length)) draw();
    else restore(before);
  } catch (error) {
    if (mine !== aborting) return;
    restore(before);
    say(explain(error), ending(signal, 1));
    mark([error]);
  } finally {
    if (mine === aborting) byId("stop").disabled = true;
  }
}

/** Where nothing came, what stood there before is worth more. */
function restore(before) {
  if (runs !== before.runs) show(before.runs, before.source);
  byId("results").hidden = !runs.length;
  byId("source").textContent ||= "From an earlier run.";
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

function newRun(knobs, given, length) {
  const panel = byId("panel").content.cloneNode(true).firstElementChild;
  const part = (name) => panel.querySelector(name);
  const { sampler, ...settings } = knobs;
  const run = { sampler, knobs, panel, given, length, steps: [], looks: [], text: "", report: null, measured: {}, solved: null,
    ended: false, pointed: null, cells: [], canvas: part("ol"), note: part(".note"), cellNote: part(".cell-note"),
    curve: part(".curve"), objective: part(".objective"), answer: part(".answer"), verdict: part(".verdict"),
    figures: part("dl") };
  part("h2").textContent = sampler;
  part(".settings").textContent = Object.entries(settings).filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name} ${value}`).join(", ");
  run.canvas.setAttribute("aria-label", `Canvas of ${sampler}`);
  part(".copy").addEventListener("click", ({ target }) => copy(run, target));
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

/** By the selection, since a browser gives its clipboard only to pages of localhost and of https. */
function copy(run, button) {
  getSelection().selectAllChildren(run.answer.querySelector("pre"));
  button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

const most = () => Math.max(0, ...runs.map((run) => run.steps.length));
const playback = new Playback(most, draw);

/** Put these runs on the page, at their newest step. */
function show(made, source) {
  runs = made;
  byId("runs").replaceChildren(...runs.map((run) => run.panel));
  byId("given").hidden = !runs[0]?.given.length;
  byId("source").textContent = source;
  byId("results").hidden = false;
  playback.restart();
  draw();
}

/** Draw what is new, once per frame however much arrives. */
function follow() {
  drawing ||= requestAnimationFrame(draw);
}

function draw() {
  drawing = 0;
  playback.show();
  const { shown } = playback;
  const curves = runs.map((run) => sums(run.steps));
  const nats = niceCeiling(Math.max(0, ...curves.map((curve) => curve.at(-1))));
  const canvases = runs.map(written);
  runs.forEach((run, side) => {
    const step = Math.min(shown, run.steps.length);
    if (run.isPicture) drawPicture(run, step);
    else drawCanvas(run, step, canvases[side], canvases[1 - side], shown);
    drawNotes(run, step, curves[side]);
    drawCurve(run.curve, curves[side], curves[1 - side], step, Math.max(1, most()), nats, runs[1 - side].sampler);
    drawObjective(run.objective, run.steps[step - 1], step);
    drawAnswer(run);
  });
}

function drawNotes(run, step, curve) {
  const { positions, objective, chosen, bypassed } = run.steps[step - 1] ?? {};
  const why = samplers.get(run.sampler)?.streams_canvas ? "the first step."
    : "the end: nothing this sampler writes is sure to stay.";
  let words = `Waiting for ${why}`;
  if (run.ended || run.steps.length) words = run.steps.length ? "Nothing is written yet." : "No answer.";
  if (positions) {
    const how = bypassed ? "sure enough, no look-ahead"
      : objective?.length ? `candidate ${chosen + 1} of ${objective.length}, J = ${objective[chosen].toFixed(3)}` : "";
    const places = positions.length > 8 ? `${positions.length} positions`
      : `${positions.length === 1 ? "position" : "positions"} ${positions.map((position) => position + 1).join(", ")}`;
    words = `Step ${step}: ${places}${how && `; ${how}`}. ${curve[step].toFixed(3)} nats so far.`;
  }
  run.note.textContent = words;
  const hint = run.isPicture ? "" : "Point at a token, or use the arrow keys, for its numbers.";
  run.cellNote.textContent = run.cells[run.pointed]?.ariaLabel ?? hint;
}

function drawAnswer(run) {
  run.answer.hidden = !run.report || !run.text;
  run.answer.querySelector("pre").textContent = run.text;
  run.verdict.textContent = run.solved === null ? "" : run.solved ? "✓ solved" : "✗ not solved";
  run.verdict.classList.toggle("wrong", run.solved === false);
  const values = run.report ? { ...run.report, ...run.measured } : {};
  const known = Object.entries(FIGURES).filter(([name]) => values[name] !== undefined);
  run.figures.replaceChildren(...known.map(([name, [label, digits]]) => element("div", {}, element("dt", {}, label),
    element("dd", { "data-figure": name }, digits === undefined ? values[name] : values[name].toFixed(digits)))));
}

// The page.

/** What a server of the embedded model once answered, so that there is something to see before the first run. */
async function showRecorded() {
  const idle = aborting;
  const { model, prompt, runs: recorded } = await (await request("infogain/recorded.json", {})).json();
  if (aborting !== idle) return; // a run was faster
  const made = recorded.map(({ knobs, ...rest }) => Object.assign(newRun(knobs, [], 0), rest, { ended: true }));
  show(made, `Recorded: what ${model} answers to “${prompt.replaceAll("\n", " ")}”. Press Run for an answer of this server.`);
}

byId("form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
byId("stop").addEventListener("click", () => aborting.abort());
window.addEventListener("resize", follow);
for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => {
    byId("prompt").value = button.dataset.prompt;
    byId("max_tokens").value = button.dataset.tokens;
    byId("kind").value = "pictures" in button.dataset ? "picture" : "text";
  });
}
document.querySelector("[data-prompt]").click();

try {
  const { samplers: known, writes_pictures: writesPictures } = await (await request("infogain/samplers", {})).json();
  for (const part of document.querySelectorAll("[data-pictures]")) part.hidden = !writesPictures;
  if (writesPictures) document.querySelector("[data-prompt][data-pictures]").click();
  samplers = new Map(known.map((sampler) => [sampler.name, sampler]));
  setUp(samplers);
  await showRecorded();
} catch (error) {
  say(explain(error), "");
}
