// What is chosen, and how: by pointer, by key, by the buttons.

let chosen = -1;
let held = false;

function choose(index, { hold = held, focus = false } = {}) {
  index = Math.max(0, Math.min(rounds.length - 1, index));
  held = hold;
  byId("held").hidden = !held;
  if (index !== chosen) {
    if (chosen >= 0) {
      spans[chosen].setAttribute("aria-selected", "false");
      spans[chosen].tabIndex = -1;
      columns[chosen].classList.remove("on");
    }
    chosen = index;
    spans[index].setAttribute("aria-selected", "true");
    spans[index].tabIndex = 0;
    columns[index].classList.add("on");
    drawRound(index);
  }
  if (focus) spans[index].focus();
}

function onPointer(elements) {
  elements.forEach((element, index) => {
    let waiting, wasHeld; // a pointer on its way to somewhere else changes nothing; focus comes before the click
    element.addEventListener("pointerenter", () => (waiting = setTimeout(() => held || choose(index), 60)));
    element.addEventListener("pointerleave", () => clearTimeout(waiting));
    element.addEventListener("pointerdown", () => (wasHeld = held && chosen === index));
    element.addEventListener("click", () => choose(index, { hold: !wasHeld }));
  });
}

function onKey(event) {
  const to = { ArrowRight: chosen + 1, ArrowDown: chosen + 1, ArrowLeft: chosen - 1, ArrowUp: chosen - 1, Home: 0, End: rounds.length - 1 }[event.key];
  if (to !== undefined) choose(to, { hold: true, focus: true });
  else if (event.key === "Enter" || event.key === " ") choose(chosen, { hold: !held });
  else return;
  event.preventDefault();
}

function pairs(place, entries) {
  byId(place).append(...entries.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
}

function start() {
  const f = data.figures;
  byId("headline").textContent = `${plural(f.tokens, "token")} in ${plural(f.rounds, "round")}`;
  pairs("figures", [
    ["tokens per round", f.tokens_per_round.toFixed(2)],
    ["draft calls per round", f.draft_calls_per_round.toFixed(2)],
    ["tokens/s by the eager runner", f.tokens_per_second.toFixed(f.tokens_per_second < 100 ? 1 : 0)],
  ]);
  pairs("about", Object.entries(data.about));
  drawPrompt();
  drawText();
  drawScale();
  byId("key").append(...[["k2", "accepted"], ["k1", "verified"], ["k0", "drafted only"], ["k3", "the target’s own"]].map(([name, text]) => html("span", { class: name }, text)), "Numbers are percent: a path’s probability under the draft.");
  onPointer(spans);
  onPointer(columns);
  spans.forEach((span, index) => span.addEventListener("focus", () => choose(index)));
  byId("text").addEventListener("keydown", onKey);
  document.addEventListener("keydown", (event) => event.key === "Escape" && choose(chosen, { hold: false }));
  byId("back").addEventListener("click", () => choose(chosen - 1, { hold: true }));
  byId("next").addEventListener("click", () => choose(chosen + 1, { hold: true }));
  window.addEventListener("resize", () => drawRound(chosen));
  const most = rounds.reduce((best, round, index) => (round.accepted > rounds[best].accepted ? index : best), 0);
  choose(most);
}

start();
