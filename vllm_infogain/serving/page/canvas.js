// One canvas: its cells, their places and what they say. Positions count from 1 here, as steps and candidates do.

import { element } from "./charts.js";

const BOUNDS = [0.01, 0.1, 0.3, 1]; // nats, between the classes h0 to h4; the legend in index.html names them

/** By position: the token, and the step that wrote it; what was given, by step 0. */
export function written(run) {
  const tokens = run.given.map((text) => text === undefined ? text : { text, step: 0 });
  run.steps.forEach(({ positions, text, entropies }, index) => positions.forEach((position, i) => {
    tokens[position] = { text: text[i], entropy: entropies[i], step: index + 1 };
  }));
  return tokens;
}

/** Draw the state after `step`; `others`: the other side's tokens, of which it shows those up to step `shown`. */
export function drawCanvas(run, step, tokens, others, shown) {
  const length = Math.max(run.length, tokens.length);
  run.canvas.classList.toggle("long", length > 60);
  while (run.cells.length < length) {
    run.cells.push(element("li", { class: "cell", role: "option", tabindex: run.cells.length ? -1 : 0 }));
    run.canvas.append(run.cells.at(-1));
  }
  // Places follow the newest state, whatever step is shown, so that nothing moves in a replay.
  const places = gridColumns(Array.from({ length }, (_, position) => tokens[position]), columnsOf(run.canvas));
  run.cells.forEach((cell, position) => {
    const token = tokens[position];
    const isFilled = token?.step <= step;
    const isGiven = token?.step === 0;
    const differs = isFilled && others[position]?.step <= shown && others[position].text !== token.text;
    const face = isFilled ? faceOf(token.text) : { text: "·", kind: "masked" };
    cell.style.gridColumn = places[position];
    cell.textContent = face.text;
    cell.className = ["cell", face.kind, isGiven ? "given" : isFilled && classOf(token.entropy),
      isFilled && !isGiven && token.step === step && "newest", differs && "differs"].filter(Boolean).join(" ");
    cell.tabIndex = position === (run.pointed ?? 0) ? 0 : -1;
    cell.setAttribute("aria-selected", position === run.pointed);
    const how = isGiven ? "given" : `written in step ${token?.step} at ${token?.entropy.toFixed(4)} nats`;
    cell.ariaLabel = `Position ${position + 1}: ${isFilled ? `${JSON.stringify(token.text)}, ${how}` : "masked"}`
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

/** Columns of the grid that a line has room for. */
function columnsOf(canvas) {
  const { columnGap, gridTemplateColumns } = getComputedStyle(canvas);
  const [gap, side] = [parseFloat(columnGap), parseFloat(gridTemplateColumns)];
  return Math.max(1, Math.floor((canvas.clientWidth + gap) / (side + gap)) || 1);
}

/** Every cell's columns: a line ends behind a line break, and before a word that it has no room for but the next has. */
function gridColumns(tokens, columns) {
  const spans = tokens.map((token) => Math.min(columns, token ? faceOf(token.text).columns : 1));
  let column = 0;
  return tokens.map((token, position) => {
    const before = tokens[position - 1];
    const isStart = position === 0 || mayPart(before, token);
    let room = spans[position];
    for (let next = position + 1; isStart && next < tokens.length && !mayPart(tokens[next - 1], tokens[next]); next += 1) {
      room += spans[next];
      if (room > columns) break;
    }
    const needed = room > columns ? spans[position] : room; // a word longer than any line is broken at its end
    if (before?.text.endsWith("\n") || column + needed > columns) column = 0;
    column += spans[position];
    return `${column - spans[position] + 1} / span ${spans[position]}`;
  });
}

/** Whether a line may end between two cells: at masks, special tokens, white space and behind commas. */
function mayPart(before, after) {
  const stands = (token) => token && !/^<\|.+\|>$/s.test(token.text);
  return !stands(before) || !stands(after) || /[\s,;]$/.test(before.text) || /^\s/.test(after.text);
}
