// A conversation. What people and the model say goes in as text nodes only, never as markup.

const byId = (id) => document.getElementById(id);
const METHODS = { "": "RADAR", eagle3: "EAGLE-3", plain: "plain" };
const turns = []; // {question, options, answers: [{method, text, whole, place}]}
let running = null;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const stepOf = (count) => `var(--step-${Math.max(1, Math.min(count, 8)) - 1})`;
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function fill(place, count) {
  place.style.setProperty("--fill", stepOf(count));
  return place;
}

function chosenModel() {
  return document.querySelector("#methods input:checked").value;
}

function nameOf(model) {
  const at = model.lastIndexOf("@");
  return METHODS[at < 0 ? "" : model.slice(at + 1)] ?? model;
}

/** One answer on the page, with what is known of its rounds. */
class Answer {
  constructor(turn, model) {
    this.method = nameOf(model);
    this.text = "";
    this.whole = false;
    this.rounds = this.tokens = this.calls = this.inRounds = 0;
    this.begun = null;
    this.words = element("div", { class: "mono" });
    this.note = element("p", { class: "note" });
    this.place = element("article", { class: "answer" }, element("h2", {}, this.method), this.words, this.note);
    turn.place.append(this.place);
    turn.answers.push(this);
  }

  take(chunk) {
    const piece = chunk.choices[0]?.delta?.content ?? "";
    const round = chunk.radar;
    if (piece && round) {
      const place = fill(element("span", { class: "round" }, piece), round.tokens);
      place.title = round.round ? `round ${round.round}: ${plural(round.tokens, "token")}, ${plural(round.draft_calls, "draft call")}` : "the prompt’s pass";
      this.words.append(place);
      this.text += piece;
    }
    if (round) this.count(round);
    if (chunk.choices[0]?.finish_reason) this.reason = chunk.choices[0].finish_reason;
  }

  count(round) {
    this.begun ??= performance.now();
    this.tokens += round.tokens;
    if (round.round > 0) {
      this.rounds += 1;
      this.calls += round.draft_calls;
      this.inRounds += round.tokens;
    }
    this.show();
  }

  show() {
    const seconds = (performance.now() - this.begun) / 1000;
    byId("rounds").textContent = String(this.rounds);
    if (!this.rounds) return;
    byId("speed").textContent = (this.inRounds / seconds).toFixed(1);
    byId("accepted").textContent = (this.inRounds / this.rounds).toFixed(2);
    byId("calls").textContent = (this.calls / this.rounds).toFixed(2);
    this.speed = this.inRounds / seconds;
  }

  end(turn, problem) {
    const parts = [plural(this.tokens, "token"), plural(this.rounds, "round")];
    if (this.speed) parts.push(`${this.speed.toFixed(1)} tokens/s`);
    if (turn.options.temperature > 0) parts.push(`seed ${turn.options.seed}`);
    if (this.reason === "length") parts.push("ended by the limit of tokens");
    if (problem) parts.push(problem);
    const first = turn.answers[0];
    if (first !== this && first.whole && this.whole) parts.push(compared(first, this));
    this.note.textContent = parts.join(", ");
  }
}

function compared(first, second) {
  if (first.text === second.text) return `the same text as ${first.method}’s`;
  let place = 0;
  while (first.text[place] === second.text[place]) place += 1;
  return `parts from ${first.method}’s at character ${place}`;
}

function messagesBefore(turn) {
  const messages = [];
  for (const one of turns) {
    messages.push({ role: "user", content: one.question });
    if (one === turn) break;
    messages.push({ role: "assistant", content: one.answers.at(-1)?.text ?? "" });
  }
  return messages;
}

function setRunning(controller) {
  running = controller;
  byId("stop").disabled = !controller;
  byId("send").disabled = byId("reset").disabled = Boolean(controller);
  byId("again").disabled = Boolean(controller) || !turns.length;
}

function complain(error) {
  byId("problem").hidden = false;
  byId("problem").textContent = error.message;
  if (error.status === 401) {
    byId("key-field").hidden = false;
    byId("key").focus();
  }
}

async function answer(turn) {
  const model = chosenModel();
  const shown = new Answer(turn, model);
  setRunning(new AbortController());
  byId("problem").hidden = true;
  let problem = "";
  try {
    for await (const chunk of complete({ model, messages: messagesBefore(turn), ...turn.options }, running.signal)) shown.take(chunk);
    shown.whole = true;
  } catch (error) {
    problem = error.name === "AbortError" ? "stopped" : error.message;
    if (error.name !== "AbortError") complain(error);
  }
  shown.end(turn, problem);
  setRunning(null);
}

function numberOf(id, otherwise) {
  return byId(id).value === "" ? otherwise : Number(byId(id).value);
}

function ask(event) {
  event.preventDefault();
  const question = byId("message").value;
  if (running || !question.trim()) return;
  const seed = numberOf("seed", Math.floor(Math.random() * 2 ** 31));
  const options = { temperature: numberOf("temperature", 0), seed, max_tokens: numberOf("tokens", 256) };
  const turn = { question, options, answers: [], place: element("section", { class: "turn" }, element("p", { class: "question mono" }, question)) };
  turns.push(turn);
  byId("talk").append(turn.place);
  byId("message").value = "";
  answer(turn);
}

function reset() {
  turns.length = 0;
  byId("talk").replaceChildren();
  for (const id of ["speed", "accepted", "calls", "rounds"]) byId(id).textContent = "–";
  setRunning(null);
}

function offer(models) {
  byId("model").textContent = models[0];
  const own = models.filter((model) => model === models[0] || model.startsWith(`${models[0]}@`));
  const choices = own.map((model) => {
    const input = element("input", { type: "radio", name: "method", value: model });
    input.checked = model === models[0];
    return element("label", {}, input, nameOf(model));
  });
  byId("methods").replaceChildren(element("legend", {}, "Decoded by"), ...choices);
  byId("methods").hidden = own.length < 2;
  byId("hint").textContent = own.length < 2 ? "Start the server with --compare to see EAGLE-3 and plain decoding beside it." : "One seed is one text, whatever decodes it.";
}

async function start() {
  try {
    offer(await listModels());
  } catch (error) {
    complain(error);
  }
}

for (let count = 1; count <= 8; count++) byId("scale").append(fill(element("span", {}, count === 8 ? "8+" : String(count)), count));
byId("scale").append(" tokens from one round");
byId("ask").addEventListener("submit", ask);
byId("stop").addEventListener("click", () => running?.abort());
byId("again").addEventListener("click", () => running || answer(turns.at(-1)));
byId("reset").addEventListener("click", reset);
byId("key").addEventListener("change", () => {
  api.key = byId("key").value;
  byId("problem").hidden = true;
  start();
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) ask(event);
});
start();
