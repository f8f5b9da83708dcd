"use strict";
// The server's API: a list of models, and answers as they come.

const api = { key: "" };

function headers() {
  return api.key ? { authorization: `Bearer ${api.key}` } : {};
}

/** The answer, or an error with what the server said. */
async function call(path, options = {}) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  let said = `${response.status} ${response.statusText}`;
  try {
    said = (await response.json()).error.message;
  } catch {
    // not of the API: the status says it
  }
  throw Object.assign(new Error(said), { status: response.status });
}

async function listModels() {
  const answer = await (await call("/v1/models", { headers: headers() })).json();
  return answer.data.map((model) => model.id);
}

/** Chunks of a chat completion. The stream ends when `signal` aborts. */
async function* complete(body, signal) {
  const response = await call("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, include_rounds: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended the answer halfway");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith(":")) continue; // it waits
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
