// A round in words and numbers.

function drawRound(index) {
  const round = rounds[index];
  byId("round-title").textContent = title(index);
  byId("gain").textContent = `${plural(round.tokens.length, "token")} for one pass of the target`;
  byId("back").disabled = index === 0;
  byId("next").disabled = index === rounds.length - 1;
  byId("story").replaceChildren(...story(round));
  const drafted = round.kind === "draft";
  for (const id of ["tree", "key", "calls"]) byId(id).hidden = !drafted;
  if (!drafted) return;
  drawTree(round);
  drawCalls(round);
}

const strong = (text) => html("b", {}, text);

function story(round) {
  if (round.kind === "prompt") return [`The target read the ${plural(data.num_prompt_tokens, "token")} of the prompt and gave the first token of the text. Nothing was drafted; the pass counts in no average.`];
  if (round.kind === "plain") return ["A plain step: the target gave one token, and nothing was drafted."];
  const proposed = round.calls.reduce((sum, call) => sum + call.candidates, 0);
  const words = [
    strong(plural(round.calls.length, "draft call")), ` proposed ${plural(proposed, "candidate")}; the target verified the best `,
    strong(String(round.verified)), " in one pass, accepted ", strong(String(round.accepted)), " and added a token of its own. ",
    html("span", { class: "why" }, ending(round)), " ", missed(round),
  ];
  const lost = round.accepted + 1 - round.tokens.length;
  if (lost > 0) words.push(` The text ended here: ${plural(lost, "token")} of this round ${lost === 1 ? "is" : "are"} left out.`);
  return words;
}

/** Why the drafting ended. */
function ending(round) {
  const last = round.calls.at(-1), calls = round.calls.length;
  if (!last.asked) return `The tree’s limit of ${plural(calls, "call")} ended the drafting.`;
  if (last.go_on !== null) return `After call ${calls} the policy gave going on ${percent(last.go_on)} %, and stopped.`;
  if (data.policy.mass !== null) return `After call ${calls} the beam held ${percent(last.mass)} % of the probability, less than ${percent(data.policy.mass)} %: the policy stopped.`;
  return `The policy, ${data.policy.name}, stopped after call ${calls}.`;
}

/** Whether the draft had the target's own token. */
function missed(round) {
  const { token, parent, score, state } = round.nodes;
  const last = state.lastIndexOf(2);
  const at = token.findIndex((id, index) => id === round.target && parent[index] === last);
  if (at >= 0) return `The draft had proposed that token too, at ${percent(Math.exp(score[at]))} %, too unlikely to be among those verified.`;
  return round.accepted === round.calls.length ? "The accepted path reached the last level." : "No draft call had proposed that token there.";
}

function drawCalls(round) {
  const trained = round.calls[0].go_on !== null;
  const row = (cell, values) => html("tr", {}, ...values.map((value) => html(cell, cell === "th" ? { scope: "col" } : {}, value)));
  const body = round.calls.map((call, index) => {
    const decision = index < round.calls.length - 1 ? "go on" : call.asked ? "stop" : "limit";
    const chance = call.go_on === null ? "not asked" : `${percent(call.go_on)} %`;
    return row("td", [String(index + 1), call.candidates.toLocaleString("en"), `${percent(call.mass)} %`, ...(trained ? [chance] : []), decision]);
  });
  const head = row("th", ["call", "candidates", "beam’s mass", ...(trained ? ["go on"] : []), "decision"]);
  const time = Object.entries(round.milliseconds).map(([part, value]) => `${part} ${value.toFixed(1)} ms`).join(", ");
  byId("calls").querySelector("table").replaceChildren(
    html("caption", {}, `Time: ${time}`), html("thead", {}, head), html("tbody", {}, ...body));
}
