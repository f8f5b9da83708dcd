// The text, a span for each round, and the strip of columns above it.

const rounds = data.rounds;
const spans = [];
const columns = [];

/** Text with its line ends marked by style, so that a token that is nothing else can be seen and copies as it is. */
function writeText(element, text) {
  const lines = text.split("\n");
  lines.forEach((line, index) => {
    element.append(line);
    if (index < lines.length - 1) element.append(html("span", { class: "end" }), "\n");
  });
}

function tokenSpan([text, special], own) {
  const span = html("span", { class: special ? "token special" : "token" });
  if (own) span.classList.add("own");
  writeText(span, text);
  return span;
}

function drawPrompt() {
  const place = html("span");
  for (const [text, special] of data.prompt) place.append(html("span", special ? { class: "special" } : {}, text));
  const long = data.prompt.reduce((sum, [text]) => sum + text.length, 0) > 700;
  const whole = long && html("details", {}, html("summary", {}, `The prompt, ${plural(data.num_prompt_tokens, "token")}`), place);
  byId("prompt").append(whole || place);
}

function drawText() {
  rounds.forEach((round, index) => {
    const whole = round.tokens.length > round.accepted; // not cut before the target's own token
    const span = html("span", { class: "round", role: "option", id: `round-${index}`, tabindex: "-1", "aria-selected": "false" });
    span.setAttribute("aria-label", `${title(index)}, ${plural(round.tokens.length, "token")}: ${round.tokens.map(([text]) => text).join("")}`);
    span.style.setProperty("--fill", stepOf(round.tokens.length));
    round.tokens.forEach((token, at) => span.append(tokenSpan(token, whole && at === round.tokens.length - 1)));
    spans.push(span);
    const column = html("i", {});
    column.style.setProperty("--fill", stepOf(round.tokens.length));
    column.style.setProperty("--calls", round.calls.length);
    column.style.setProperty("--accepted", round.accepted);
    columns.push(column);
  });
  byId("text").append(...spans);
  byId("strip").style.gap = columns.length > 90 ? "0" : "2px";
  byId("strip").append(...columns);
}

function drawScale() {
  const steps = html("b", {});
  for (let count = 1; count <= 8; count++) {
    const swatch = html("span", {}, count === 8 ? "8+" : String(count));
    swatch.style.setProperty("--fill", stepOf(count));
    steps.append(swatch);
  }
  byId("scale").append(steps, "tokens from one round");
}

/** Rounds count from 1; the prompt's pass, which is none, stands before them. */
const title = (index) => (rounds[index].kind === "prompt" ? "The prompt’s pass" : `Round ${index}`);
