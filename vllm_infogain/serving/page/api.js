// The server's API, and what goes wrong with it in words.

const BAD_STATUS = {
  401: "the server wants an API key, and this is not it: fill in the field API key.",
  404: "this server does not answer here: is it one of vLLM, with a model that generates?",
};

/** What went wrong, in words for whoever runs the page, and the name of the field it is about, if any. */
export class Problem extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

/** The data of every server-sent event in `body`, however its bytes are cut up. */
export async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new Problem("the connection broke before the answer was complete.");
      });
      const lines = (rest + (value ?? "\n")).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
      if (done) return;
    }
  } finally {
    await reader.cancel().catch(() => {}); // a stream that failed has nothing left to cancel
  }
}

/** The response, or a Problem that says in words why there is none. */
export async function request(url, { key, body, signal }) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const method = body ? "POST" : "GET";
  const response = await fetch(url, { method, headers, body: JSON.stringify(body), signal }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Problem("the server could not be reached: does it still run?");
  });
  if (response.ok) return response;
  const { message, param } = (await response.json().catch(() => ({}))).error ?? {};
  const said = message ?? BAD_STATUS[response.status] ?? response.statusText;
  throw new Problem(`HTTP ${response.status}: ${said}`, param ?? (response.status === 401 ? "key" : undefined));
}

/** The text of each of these tokens alone, by its id. */
export async function textsOf(ids, sent) {
  return new Map(await Promise.all([...new Set(ids)].map(async (id) => {
    const body = { model: sent.body.model, tokens: [id] };
    return [id, (await (await request("detokenize", { ...sent, body })).json()).prompt];
  })));
}

/** What a canvas holds from the start: by place the text that stands, undefined for a mask; [] without masks in text. */
export async function givenTexts(sent) {
  const { model, prompt } = sent.body;
  if (!/<\|[^<>]*mask[^<>]*\|>/i.test(prompt)) return [];
  const [ids, [mask]] = await Promise.all([{ prompt }, { prompt: "<|mask|>", add_special_tokens: false }].map(
    async (asked) => (await (await request("tokenize", { ...sent, body: { model, ...asked } })).json()).tokens));
  const canvas = ids.includes(mask) ? ids.slice(ids.indexOf(mask)) : [];
  const text = await textsOf(canvas, sent);
  return canvas.map((id) => id === mask ? undefined : text.get(id));
}

/** Whether `text` solves the puzzle that the prompt is: true, false, or null where it is none. */
export async function isSolved(text, sent) {
  const body = { prompt: sent.body.prompt, text };
  return (await (await request("infogain/check", { ...sent, body })).json()).solved;
}
