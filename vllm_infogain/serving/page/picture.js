// A picture that two samplers fill in: asked for, and shown as it stood at a step.

import { eventData, Problem, request } from "./api.js";
import { element } from "./charts.js";

const LOOKS = 3; // pictures on the way, the most that the server sends

/** Ask for a picture. `run.looks` gets what is known of it, with the steps taken so far, and `run.steps` all at its end;
 * `begin` is called once it is admitted, `changed` whenever there is more to see. */
export async function paint(run, sent, streamsCanvas, begin, changed) {
  const { block_length: _, ...knobs } = run.knobs; // a picture is one block
  const { prompt, model, temperature, seed } = sent.body;
  const body = { prompt, model, temperature, seed, stream: true, partial_images: streamsCanvas ? LOOKS : 0,
    vllm_xargs: { ...knobs, return_trajectory: 1 } };
  const response = await request("v1/images/generations", { ...sent, body });
  begin();
  for await (const data of eventData(response.body)) {
    const { b64_json, output_format, infogain_step, infogain, error } = JSON.parse(data);
    if (error) throw new Problem(error.message);
    run.report = infogain ?? run.report;
    run.steps = infogain?.trajectory.map((step) => ({ ...step, text: step.tokens.map(String) })) ?? run.steps;
    run.looks.push({ step: infogain_step ?? run.steps.length, source: `data:image/${output_format};base64,${b64_json}` });
    changed();
  }
  if (!run.report) throw new Problem("the connection ended before the picture was whole.");
}

/** Show what was known of the picture at `step`; before its steps have come, the newest. */
export function drawPicture(run, step) {
  const look = run.looks.findLast((one) => !run.steps.length || one.step <= step);
  run.canvas.hidden = true;
  run.picture ??= element("img", { class: "picture" });
  if (!look) return run.picture.remove();
  if (run.picture.src !== look.source) run.picture.src = look.source;
  run.picture.alt = `What ${run.sampler} has drawn after step ${look.step}`;
  if (!run.picture.isConnected) run.canvas.after(run.picture);
}
