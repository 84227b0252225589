// The two charts of a run: its cumulative entropy, and J of the candidates of one step.

const [LEFT, RIGHT, TOP, BOTTOM] = [36, 8, 8, 20]; // room around a plot, in CSS pixels

export function element(name, attributes, ...children) {
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

/** Running sums of the steps' entropies, from 0: [steps + 1] nats. */
export function sums(steps) {
  const totals = [0];
  for (const { entropies } of steps) totals.push(totals.at(-1) + entropies.reduce((sum, nats) => sum + nats, 0));
  return totals;
}

export function niceCeiling(value) {
  const scale = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * scale >= value) * scale;
}

/** From numbers to places in the plot: x of 0 to `last`, y of `low` to `high`. */
function scales(svg, last, low, high) {
  const { width, height } = svg.getBoundingClientRect();
  const [right, bottom] = [width - RIGHT, height - BOTTOM];
  return { right, bottom, height, x: (value) => LEFT + ((right - LEFT) * value) / last,
    y: (value) => bottom - ((bottom - TOP) * (value - low)) / (high - low) };
}

function gridAt(values, { right, y }) {
  return values.flatMap((value) => [
    shape("line", { class: "grid", x1: LEFT, x2: right, y1: y(value), y2: y(value) }),
    shape("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, +value.toPrecision(2)),
  ]);
}

export function drawCurve(svg, own, other, step, last, nats, otherName) {
  const plot = scales(svg, last, 0, nats);
  const { x, y, height } = plot;
  const points = (curve) => curve.map((sum, steps) => `${x(steps)},${y(sum)}`).join(" ");
  const line = (curve, kind) => shape("polyline", { class: kind, points: points(curve) });
  const ends = [[0, "middle"], [last, "end"]].map(([value, anchor]) =>
    shape("text", { x: x(value), y: height - 4, "text-anchor": anchor }, value ? `step ${value}` : value));
  const [now, total] = [own[step], own.at(-1)].map((sum) => sum.toFixed(3));
  svg.ariaLabel = `Cumulative entropy: ${now} nats after step ${step}, ${total} at the end`;
  const key = shape("text", { x: LEFT + 6, y: 24 }, `dashed: ${otherName}`); // where no sum has a reason to be
  svg.replaceChildren(...gridAt([0, nats / 2, nats], plot), ...ends, key, line(other, "ghost"), line(own, "own"),
    shape("circle", { class: "now", cx: x(step), cy: y(own[step]), r: 4.5 }));
}

/** J of every candidate of `step` (from 1), the chosen one filled; in words where the step compared none. */
export function drawObjective(svg, { objective, chosen, bypassed } = {}, step) {
  if (!objective?.length) {
    const why = bypassed ? "all sure enough: no look-ahead" : "no candidates were compared";
    svg.ariaLabel = `J: ${step ? `${why} in step ${step}` : "no step yet"}`;
    svg.replaceChildren(shape("text", { x: 4, y: 24 }, step ? why : "no step yet"));
    return;
  }
  const [least, most] = [Math.min(...objective), Math.max(...objective)];
  const room = (most - least) * 0.1 || 0.1; // so that no point lies on the edge, and equal ones in the middle
  const plot = scales(svg, objective.length + 1, least - room, most + room);
  const { x, y, height } = plot;
  const points = objective.map((value, index) => shape("circle",
    { class: index === chosen ? "now" : "candidate", cx: x(index + 1), cy: y(value), r: index === chosen ? 4.5 : 3.5 },
    shape("title", {}, `candidate ${index + 1}: J = ${value.toFixed(3)}`)));
  const numbers = [...new Set([0, chosen, objective.length - 1])].map((index) =>
    shape("text", { x: x(index + 1), y: height - 4, "text-anchor": "middle" }, index + 1));
  svg.ariaLabel = `J of ${objective.length} candidates in step ${step}: `
    + objective.map((value, index) => `${value.toFixed(3)}${index === chosen ? " (chosen)" : ""}`).join(", ");
  svg.replaceChildren(...gridAt([...new Set([least, most])], plot), ...numbers, ...points);
}
