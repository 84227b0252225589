// What the reader asks for: the fields of both sides and those they share, and which of them a problem is about.

import { Problem } from "./api.js";

const byId = (id) => document.getElementById(id);
export const SIDES = ["left", "right"];
const SHARED = ["temperature", "seed", "max_tokens"]; // fields of the request itself
const OTHERS = "others"; // the field for parameters that have none of their own

const knobsOf = (side) => [...byId(`${side}-side`).querySelectorAll("[data-knob]")];

/** Make both sides' fields; `samplers`: by name, its line and the names of its parameters. */
export function setUp(samplers) {
  for (const side of SIDES) {
    const fields = byId("side").content.cloneNode(true).firstElementChild;
    fields.id = `${side}-side`;
    fields.querySelector("legend").textContent = side === "left" ? "Left" : "Right";
    const select = fields.querySelector("[data-knob=sampler]");
    select.append(...[...samplers.keys()].map((name) => new Option(name)));
    select.value = side === "left" ? "entropy" : "info_gain";
    select.id = side;
    const line = fields.querySelector(".hint");
    line.id = `${side}-line`;
    select.setAttribute("aria-describedby", line.id);
    byId("sides").append(fields);
    select.addEventListener("change", () => follow(side, samplers.get(select.value)));
    follow(side, samplers.get(select.value));
  }
  byId("form").addEventListener("input", ({ target }) => unmark(target));
}

/** Say what the side's sampler is, and close the fields it has no use for: the server would refuse them. */
function follow(side, sampler) {
  byId(`${side}-line`).textContent = sampler ? `${sampler.name} ${sampler.line}` : "";
  for (const field of knobsOf(side)) {
    field.disabled = Boolean(sampler) && field.dataset.knob !== OTHERS && !sampler.knobs.includes(field.dataset.knob);
  }
}

/** The request's own fields, and both sides' parameters. */
export function read() {
  for (const field of document.querySelectorAll("[aria-invalid]")) unmark(field);
  const body = { prompt: byId("prompt").value };
  for (const name of SHARED) body[name] = valueOf(byId(name));
  const shared = { block_length: valueOf(byId("block_length")) };
  return { body, sides: SIDES.map((side) => ({ ...shared, ...readSide(side) })) };
}

function readSide(side) {
  const knobs = {};
  for (const field of knobsOf(side).filter(({ disabled }) => !disabled)) {
    if (field.dataset.knob === OTHERS) Object.assign(knobs, pairs(field));
    else knobs[field.dataset.knob] = valueOf(field);
  }
  return knobs;
}

/** What a field holds; undefined where it is empty: left out, the server's default holds. */
function valueOf(field) {
  if (field.validity.badInput) throw problemAt(field, "give a number.");
  if (field.value === "") return undefined;
  return field.type === "number" ? Number(field.value) : field.value;
}

/** `name=value name=value`; numbers, lists and truths as JSON writes them. */
function pairs(field) {
  return Object.fromEntries(field.value.split(/\s+/).filter(Boolean).map((pair) => {
    const [, name, value] = /^(\w+)=(.+)$/.exec(pair) ?? [];
    if (!name) throw problemAt(field, "write name=value, and a space between two.");
    try {
      const parsed = JSON.parse(value);
      return [name, typeof parsed === "boolean" ? Number(parsed) : parsed]; // vllm_xargs hold no truths
    } catch {
      return [name, value];
    }
  }));
}

function problemAt(field, words) {
  const problem = new Problem(`${field.labels[0].firstChild.data.trim()}: ${words}`);
  problem.element = field;
  return problem;
}

/** Mark the fields that these problems, by side or one of both, are about, and go to the first. */
export function mark(problems) {
  const fields = problems.flatMap((problem, index) => {
    if (problem?.element) return [problem.element];
    return problem?.field ? [find(SIDES[index], problem.field)].filter(Boolean) : [];
  });
  for (const field of fields) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", "problem");
  }
  fields[0]?.focus();
}

function find(side, name) {
  const own = knobsOf(side);
  const others = own.find(({ dataset, value }) => dataset.knob === OTHERS && value.includes(`${name}=`));
  return own.find(({ dataset }) => dataset.knob === name) ?? others ?? byId("form").querySelector(`#${CSS.escape(name)}`);
}

function unmark(field) {
  field.removeAttribute("aria-invalid");
  field.removeAttribute("aria-errormessage");
}
