// The run as a fold over its events, and the fold as elements. No network here.

export function empty() {
  return { run: "", started: null, rounds: new Map(), ballots: [], decisions: [], warnings: [],
    convergence: [], final: { seat: "", text: "", reasoning: "" }, finished: null, failure: null,
    begin: 0, last: 0, calls: [] };
}

export function fold(s, e) {
  if (e.at) { s.begin = s.begin || e.at; s.last = e.at; }
  switch (e.type) {
    case "council_started": s.started = e; s.run = e.run; break;
    case "council_resumed": s.failure = null; break;
    case "round_started": {
      if (!s.rounds.has(e.round)) s.rounds.set(e.round, { stage: e.stage, lanes: new Map() });
      for (const seat of e.seats) lane(s, e.round, seat, e.at);
      break;
    }
    case "token": {
      const l = lane(s, e.round, e.seat, e.at);
      l.text += e.text || ""; l.thought += e.reasoning || "";
      if (l.state === "waiting") { l.state = "writing"; l.first = e.at; }
      break;
    }
    case "synthesis_token": {
      if (s.final.seat !== e.seat) s.final = { seat: e.seat, text: "", reasoning: "" };
      s.final.text += e.text || ""; s.final.reasoning += e.reasoning || "";
      const l = lane(s, e.round, e.seat, e.at);
      l.text += e.text || ""; l.thought += e.reasoning || ""; l.state = "writing";
      break;
    }
    case "answer": case "expert_failed": {
      const l = lane(s, e.round, e.seat, e.at);
      l.end = e.at; l.seconds = e.seconds || 0;
      l.state = e.type === "answer" ? (e.status && e.status !== "ok" ? e.status : "done") : e.status;
      l.failed = e.type !== "answer";
      if (l.failed) l.message = e.message || ""; else { l.text = e.text; l.thought = e.reasoning || l.thought; }
      s.calls.push({ seat: e.seat, round: e.round, start: e.at - (e.seconds || 0), end: e.at, failed: l.failed });
      break;
    }
    case "ballot": s.ballots.push(e); break;
    case "decision": s.decisions.push(e); break;
    case "convergence": s.convergence.push(e); break;
    case "warning": s.warnings.push(e); break;
    case "council_finished": s.finished = e; break;
    case "council_failed": s.failure = e; break;
    case "interrupted": s.failure = { code: "interrupted", message: e.message }; break;
  }
  return s;
}

function lane(s, round, seat, at) {
  if (!s.rounds.has(round)) s.rounds.set(round, { stage: "", lanes: new Map() });
  const lanes = s.rounds.get(round).lanes;
  if (!lanes.has(seat)) lanes.set(seat, { text: "", thought: "", state: "waiting", begin: at, failed: false });
  return lanes.get(seat);
}

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.assign(node.style, value);
    else if (key in node && typeof value === "boolean") node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}.]+/gu) || [];

function likeness(a, b) {
  const x = new Set(words(a)), y = new Set(words(b));
  if (!x.size && !y.size) return 1;
  let both = 0;
  for (const w of x) if (y.has(w)) both += 1;
  return both / (x.size + y.size - both);
}

const counted = new Set(["number", "choice", "boolean", "span"]);
const last = (text) => words(text.trim().split("\n").at(-1)).at(-1) || "";

function matrix(number, round, kind) {
  const exact = counted.has(kind);
  const alike = exact ? (a, b) => Number(last(a) === last(b)) : likeness;
  const seats = [...round.lanes].filter(([, l]) => !l.failed && l.text);
  if (seats.length < 2) return null;
  const head = el("tr", {}, el("td"), ...seats.map(([n]) => el("th", { scope: "col" }, n)));
  const rows = seats.map(([n, a]) => el("tr", {}, el("th", { scope: "row" }, n),
    ...seats.map(([, b]) => {
      const v = alike(a.text, b.text);
      const cell = el("td", { class: "heat" }, v.toFixed(2));
      cell.style.setProperty("--v", (v * 0.55).toFixed(3));
      return cell;
    })));
  return el("table", {}, el("caption", {}, `round ${number}: ${exact ? "same answer" : "shared words"}`), head, ...rows);
}

function difference(from, to) {
  const a = from.split(/(\s+)/), b = to.split(/(\s+)/);
  if (a.length * b.length > 400000) return [to];
  const t = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      t[i][j] = a[i] === b[j] ? t[i + 1][j + 1] + 1 : Math.max(t[i + 1][j], t[i][j + 1]);
  const out = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { out.push(a[i]); i++; j++; }
    else if (j < b.length && (i >= a.length || t[i][j + 1] >= t[i + 1][j])) out.push(el("ins", {}, b[j++]));
    else out.push(el("del", {}, a[i++]));
  }
  return out;
}

const stages = { draft: "answers", revise: "revision", ballot: "ballots", synthesis: "the final text" };

function laneCard(seat, l, model) {
  const live = l.state === "waiting" || l.state === "writing";
  const note = live ? l.state : `${l.state}${l.seconds ? ` · ${l.seconds.toFixed(1)} s` : ""}`;
  return el("div", { class: `card lane${live ? " live" : ""}` },
    el("h3", {}, el("span", {}, `${seat}  `, el("span", { class: "meta" }, model)),
      el("span", { class: `state${l.failed ? " failed" : live ? "" : " done"}` }, note)),
    l.thought ? el("details", { open: live && !l.text }, el("summary", { class: "meta" }, "working"),
      el("p", { class: "words thought" }, l.thought)) : null,
    el("p", { class: "words", tabindex: "0" }, l.failed ? l.message || l.state : l.text));
}

function votes(s) {
  const d = s.decisions.at(-1);
  if (!d || !d.positions?.length) return null;
  const most = Math.max(...d.positions.map((p) => p.weight || 0), 1e-9);
  return el("section", { "aria-label": "Votes" }, el("h2", {}, d.how === "review" ? "Ranking" : "Votes"),
    el("ul", { class: "votes card" }, ...d.positions.map((p) => el("li", {},
      el("span", { class: "words" }, p.answer.slice(0, 120)),
      el("span", { class: "bar" }, el("i", { style: { width: `${(100 * (p.weight || 0)) / most}%` } })),
      el("span", { class: "meta" }, `${p.seats.join(", ")} · ${(p.weight || 0).toFixed(2)}`)))),
    s.ballots.some((b) => b.ranking?.length) ? el("ul", { class: "meta" }, ...s.ballots.map((b) =>
      el("li", {}, `${b.seat}: ${(b.ranking || []).map((g) => g.join("=")).join(" > ") || "abstained"}`))) : null,
    d.flips?.length ? el("p", { class: "meta" }, `changed their mind: ${d.flips.join("; ")}`) : null);
}

function timeline(s) {
  if (!s.calls.length) return null;
  const begin = s.begin, span = Math.max(s.last - begin, 0.001);
  const at = (x) => `${Math.max(0, (100 * (x - begin)) / span)}%`;
  return el("section", { "aria-label": "Timeline" }, el("h2", {}, "Timeline"), el("div", { class: "card" },
    ...s.calls.map((c) => el("div", { class: "time" }, el("span", {}, `${c.seat} · ${c.round}`),
      el("span", { class: "bar" }, el("i", { class: c.failed ? "failed" : "",
        style: { left: at(c.start), width: `${(100 * (c.end - c.start)) / span}%` } })),
      el("span", { class: "meta" }, `${(c.end - c.start).toFixed(2)} s`)))));
}

export function cost(s) {
  const e = s.finished || s.failure;
  if (!e) return "";
  const u = e.usage || {}, read = u.prompt_tokens || 0, cached = u.cached_tokens || 0;
  const parts = [`${e.calls || 0} calls`, `${read} tokens read${cached ? ` (${cached} from the cache)` : ""}`,
    `${u.completion_tokens || 0} written`, `${(e.seconds || 0).toFixed(1)} s`];
  if (e.cost) parts.push(`${e.cost.toFixed(4)} in money`);
  return parts.join(" · ");
}

function verdict(s) {
  const text = s.finished ? s.finished.text : s.final.text;
  if (s.failure) return el("section", {}, el("h2", {}, "No answer"),
    el("p", { class: "card answer failure words" }, `${s.failure.code}: ${s.failure.message || ""}`));
  if (!text) return null;
  const how = s.finished ? `${s.finished.how}${s.finished.seat ? `, in the words of ${s.finished.seat}` : ""}` +
    (s.finished.agreement !== undefined ? ` · agreement ${Math.round(100 * s.finished.agreement)} %` : "") : "being written";
  return el("section", { "aria-label": "Answer" }, el("h2", {}, "Answer"),
    el("p", { class: "card answer words" }, text), el("p", { class: "meta" }, how));
}

function changes(s) {
  if (!s.finished) return null;
  const rounds = [...s.rounds.values()];
  const first = rounds[0]?.lanes.get(s.finished.seat) || [...(rounds[0]?.lanes.values() || [])][0];
  if (!first || first.failed || rounds.length < 2 || first.text.trim() === s.finished.text.trim()) return null;
  return el("section", { "aria-label": "What changed" }, el("h2", {}, "What changed since the first answer"),
    el("p", { class: "card words" }, ...difference(first.text.trim(), s.finished.text.trim())));
}

function dissent(s) {
  if (!s.finished?.dissent?.length) return null;
  return el("section", { "aria-label": "Dissent" }, el("h2", {}, "Dissent"), el("ul", { class: "card" },
    ...s.finished.dissent.map((p) => el("li", { class: "words" }, `${p.seats.join(", ")}: ${p.answer}`))));
}

export function render(s) {
  const models = Object.fromEntries((s.started?.members || []).map((m) => [m.label, m.id || m.model]));
  const question = s.started?.messages?.at(-1)?.content || "";
  const tables = [...s.rounds].map(([n, r]) => matrix(n, r, s.started?.kind)).filter(Boolean);
  const rounds = [...s.rounds].map(([n, r]) => el("section", { "aria-label": `Round ${n}` },
    el("h2", {}, `Round ${n} · ${stages[r.stage] || r.stage}`),
    el("div", { class: "lanes" }, ...[...r.lanes].map(([seat, l]) => laneCard(seat, l, models[seat] || "")))));
  return [el("section", {}, el("h2", {}, "Question"), el("p", { class: "words" }, question)), verdict(s),
    ...s.warnings.map((w) => el("p", { class: "warning" }, `Note: ${w.message}`)),
    ...rounds, votes(s), dissent(s), changes(s),
    tables.length ? el("section", { "aria-label": "Agreement" }, el("h2", {}, "Agreement"),
      el("div", { class: "matrices" }, ...tables),
      s.convergence.length ? el("p", { class: "meta" }, "likeness by round: " +
        s.convergence.map((c) => `${c.likeness.toFixed(2)} (${c.measure})`).join(" → ")) : null) : null,
    timeline(s)].filter(Boolean);
}

export function markdown(s) {
  const lines = [`# ${s.started?.messages?.at(-1)?.content || ""}`, "", s.finished?.text || s.failure?.message || "", "", `> ${cost(s)}`];
  for (const [n, r] of s.rounds) {
    lines.push("", `## Round ${n}: ${stages[r.stage] || r.stage}`);
    for (const [seat, l] of r.lanes) lines.push("", `### ${seat} (${l.state})`, "", l.failed ? l.message || "" : l.text);
  }
  return lines.join("\n") + "\n";
}
