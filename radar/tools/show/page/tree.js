// The draft tree of a round: levels from left to right, a branch as straight as its level's room allows.

const ROW = 21, HEAD = 46, CHAR = 6.95;

/** Nodes by level, the root first; the target's own token joins them, as the candidate that it was or as a new one. */
function levelsOf(round) {
  const { token, parent, score, state } = round.nodes;
  const root = { token: round.root, depth: 0, order: 0, state: 2, children: [], p: 1 };
  const nodes = token.map((id, index) => ({ token: id, state: state[index], score: score[index], p: Math.exp(score[index]), children: [] }));
  nodes.forEach((node, index) => {
    node.parent = parent[index] < 0 ? root : nodes[parent[index]];
    node.depth = node.parent.depth + 1;
    node.parent.children.push(node);
  });
  const last = nodes.filter((node) => node.state === 2).at(-1) || root;
  let own = last.children.find((node) => node.token === round.target);
  if (!own) {
    own = { token: round.target, parent: last, depth: last.depth + 1, state: 0, score: Infinity, children: [] };
    nodes.push(own);
    last.children.push(own);
  }
  own.own = true;
  const levels = [[root]];
  for (let depth = 1; ; depth++) {
    const level = nodes.filter((node) => node.depth === depth);
    if (!level.length) return levels;
    level.sort((a, b) => a.parent.order - b.parent.order || leads(b) - leads(a) || b.score - a.score);
    level.forEach((node, order) => (node.order = order));
    levels.push(level);
  }
}

const leads = (node) => (node.state === 2 || node.own ? 1 : 0); // what became text stays on top of its siblings

/** Rows: a first child beside its parent where there is room, and no two branches cross. */
function place(levels) {
  const rows = Math.max(...levels.map((level) => level.length));
  for (const level of levels) {
    let free = 0;
    level.forEach((node, index) => {
      node.row = Math.min(Math.max(free, node.parent ? node.parent.row : 0), rows - level.length + index);
      free = node.row + 1;
    });
  }
  return rows;
}

function drawTree(round) {
  const levels = levelsOf(round), rows = place(levels), calls = round.calls.length;
  const room = byId("tree").clientWidth || 900;
  const pitch = Math.max(84, Math.min(138, Math.floor(room / levels.length))), box = pitch - 22;
  const width = pitch * levels.length, height = HEAD + rows * ROW + 4;
  const label = `Draft tree of ${calls} levels; ${round.accepted} nodes accepted: ${levels.flat().filter((n) => n.depth && n.state === 2).map((n) => nameOf(n.token)).join(" ")}`;
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const x = (node) => node.depth * pitch + 2, y = (node) => HEAD + node.row * ROW;
  for (const node of levels.flat().sort((a, b) => rank(a) - rank(b))) {
    if (!node.parent) continue;
    const [x0, y0, x1, y1] = [x(node.parent) + box, y(node.parent) + 9, x(node), y(node) + 9];
    const bend = (x1 - x0) * 0.55;
    picture.append(svg("path", { class: kind(node), d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}` }));
  }
  levels.flat().forEach((node) => picture.append(drawNode(node, x(node), y(node), box, round)));
  round.calls.forEach((call, index) => picture.append(drawHead(call, index, calls, (index + 1) * pitch + 2, box)));
  picture.append(svg("text", { class: "head", x: 2, y: 12 }, "root"));
  const stop = (calls + 1) * pitch - 9;
  picture.append(svg("line", { class: "stop", x1: stop, x2: stop, y1: 2, y2: height - 2 }));
  byId("tree").replaceChildren(picture);
  byId("tree").scrollLeft = 0;
}

const kind = (node) => (node.own ? "own" : `s${node.state}`);
const rank = (node) => (node.own ? 3 : node.state); // what matters is drawn last

function drawNode(node, x, y, box, round) {
  const group = svg("g", { class: `node ${kind(node)}`, transform: `translate(${x} ${y})` });
  group.style.setProperty("--fill", stepOf(round.tokens.length));
  group.append(svg("title", {}, describe(node)), svg("rect", { class: "box", width: box, height: 18, rx: 4 }));
  const chance = node.p === undefined || !node.parent ? "" : percent(node.p);
  const space = Math.floor((box - 10 - (chance ? chance.length * 6.1 + 4 : 0)) / CHAR);
  const name = [...nameOf(node.token)];
  group.append(svg("text", { x: 5, y: 13 }, name.length > space ? name.slice(0, space - 1).join("") + "…" : name.join("")));
  if (chance) group.append(svg("text", { class: "p", x: box - 4, y: 13, "text-anchor": "end" }, chance));
  if (node.own) group.append(svg("line", { class: "under", x2: box, y1: 18, y2: 18 }));
  return group;
}

function describe(node) {
  const name = `“${nameOf(node.token)}”`;
  if (!node.parent) return `${name}, the last token that was certain`;
  const own = node.own ? "the target’s own token" : "";
  if (node.p === undefined) return `${name}: ${own}, which the draft had not proposed here`;
  const chance = `${percent(node.p)} % with its path, ${percent(Math.exp(node.score - (node.parent.score || 0)))} % after its parent`;
  return `${name}: ${chance}; ${own || ["drafted, not verified", "verified, not accepted", "accepted"][node.state]}`;
}

/** What stood over a level when the policy looked at it: a trained policy's probability of going on, else the mass. */
function drawHead(call, index, calls, x, box) {
  const stopped = index === calls - 1, value = call.go_on ?? call.mass;
  const word = call.go_on === null ? "mass" : "go on";
  const group = svg("g", { transform: `translate(${x} 0)` });
  group.append(
    svg("text", { class: "head", y: 12 }, `call ${index + 1}`),
    svg("text", { class: stopped ? "value stopped" : "value", y: 27 }, `${word} ${percent(value)}`),
    svg("rect", { class: "rail", y: 33, width: box, height: 3, rx: 1.5 }),
    svg("rect", { class: stopped ? "stopped" : "level", y: 33, width: Math.max(0, Math.min(1, value)) * box, height: 3, rx: 1.5 }),
  );
  return group;
}
