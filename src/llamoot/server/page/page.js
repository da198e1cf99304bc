// The page: asks, follows the stream of events, lists past runs. Everything shown is view.js.

import { cost, el, empty, fold, markdown, render } from "/view.js";

const $ = (id) => document.getElementById(id);
const form = $("ask"), question = $("question"), select = $("model"), article = $("run");
let events = [], state = empty(), following = null, drawing = 0;

function headers(more = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function knock(path, options = {}) {
  for (;;) {
    const answer = await fetch(path, { ...options, headers: headers(options.headers) });
    if (answer.status !== 401) return answer;
    const door = $("door");
    door.returnValue = "";
    door.showModal();
    await new Promise((done) => door.addEventListener("close", done, { once: true }));
    if (!$("key").value) return answer;
    sessionStorage.setItem("key", $("key").value);
    $("key").value = "";
  }
}

async function* payloads(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks)
      for (const line of block.split("\n"))
        if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}

function say(text) { $("status").textContent = text; }

function draw() {
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    const open = document.activeElement;
    article.hidden = false;
    article.replaceChildren(...render(state), ...(state.finished || state.failure ? [exports()] : []));
    if (open?.isConnected === false) question.focus({ preventScroll: true });
  });
}

function exports() {
  const save = (name, type, text) => {
    const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const button = (label, act) => {
    const b = el("button", { type: "button", class: "quiet" }, label);
    b.addEventListener("click", act);
    return b;
  };
  const id = state.run || "run";
  return el("section", { "aria-label": "Export" }, el("div", { class: "row" },
    button("Save as Markdown", () => save(`${id}.md`, "text/markdown", markdown(state))),
    button("Save events as JSON", () => save(`${id}.json`, "application/json", JSON.stringify(events, null, 1))),
    button("Copy link", () => navigator.clipboard?.writeText(location.href).then(() => say("Link copied.")))));
}

function begin() {
  following?.abort();
  following = new AbortController();
  events = [];
  state = empty();
  $("stop").hidden = false;
  $("send").disabled = true;
  return following.signal;
}

function end(text) {
  $("stop").hidden = true;
  $("send").disabled = false;
  say(text);
  listRuns();
}

async function follow(answer) {
  for await (const event of payloads(answer)) {
    if (event.error) { state.failure = { code: event.error.code, message: event.error.message }; draw(); continue; }
    events.push(event);
    fold(state, event);
    draw();
    if (event.type === "council_started" && location.pathname !== `/runs/${event.run}`)
      history.pushState(null, "", `/runs/${event.run}`);
    if (event.type === "round_started") say(`Round ${event.round} has begun: ${event.seats.join(", ")}.`);
  }
}

async function attempt(work) {
  const signal = begin();
  try {
    const answer = await work(signal);
    if (!answer.ok) {
      const body = await answer.json().catch(() => ({}));
      throw new Error(body.error?.message || `the server answered ${answer.status}`);
    }
    await follow(answer);
    end(state.failure ? `No answer: ${state.failure.message || state.failure.code}` : `Done. ${cost(state)}`);
  } catch (error) {
    if (signal.aborted) return;
    end(`That did not work: ${error.message}`);
  }
}

function askCouncil(text, name) {
  return attempt((signal) => knock("/v1/council/transcript?keep=1", { method: "POST", signal,
    headers: { "Content-Type": "application/json" }, body: JSON.stringify({ prompt: text, council: name }) }));
}

async function askModel(text, name) {
  const signal = begin();
  const at = () => Date.now() / 1000;
  const take = (e) => { const event = { at: at(), ...e }; events.push(event); fold(state, event); draw(); };
  take({ type: "council_started", run: "", messages: [{ role: "user", content: text }], members: [{ label: name, id: "" }] });
  take({ type: "round_started", round: 1, stage: "answer", seats: [name] });
  const began = at();
  let usage = {}, reason = "stop", said = "";
  try {
    const answer = await knock("/v1/chat/completions", { method: "POST", signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: name, stream: true, stream_options: { include_usage: true }, messages: [{ role: "user", content: text }] }) });
    if (!answer.ok) throw new Error((await answer.json()).error?.message || `the server answered ${answer.status}`);
    for await (const chunk of payloads(answer)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const choice = chunk.choices?.[0];
      reason = choice?.finish_reason || reason;
      const { content = "", reasoning_content: reasoning = "" } = choice?.delta || {};
      said += content || "";
      if (content || reasoning) take({ type: "token", round: 1, seat: name, text: content || "", reasoning });
    }
    const seconds = at() - began;
    take({ type: "answer", round: 1, seat: name, text: said, seconds, status: reason === "length" ? "truncated" : "ok" });
    take({ type: "council_finished", text: said, how: reason === "length" ? "cut at its limit" : "one answer", seat: name, usage, calls: 1, seconds });
    end(`Done. ${cost(state)}`);
  } catch (error) {
    if (!signal.aborted) { take({ type: "council_failed", code: "failed", message: error.message }); end(`No answer: ${error.message}`); }
  }
}

async function openRun(id) {
  await attempt((signal) => knock(`/v1/council/runs/${encodeURIComponent(id)}`, { signal, headers: { Accept: "text/event-stream" } }));
}

async function listRuns() {
  const answer = await knock(`/v1/council/runs?limit=40&q=${encodeURIComponent($("search").value)}`).catch(() => null);
  const rows = answer?.ok ? (await answer.json()).data : [];
  $("none").hidden = rows.length > 0;
  $("runs").replaceChildren(...rows.map((row) => {
    const link = el("a", { href: `/runs/${row.id}` }, row.question.slice(0, 90),
      el("small", {}, `${row.state} · ${new Date(row.created * 1000).toLocaleString()}`));
    if (location.pathname === `/runs/${row.id}`) link.setAttribute("aria-current", "page");
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      history.pushState(null, "", link.href);
      show();
    });
    return el("li", {}, link);
  }));
}

async function listModels() {
  const answer = await knock("/v1/models");
  const { data = [] } = answer.ok ? await answer.json() : {};
  data.sort((a, b) => (b.meta?.kind === "council") - (a.meta?.kind === "council"));
  select.replaceChildren(...data.map((m) => el("option", { value: m.id }, m.id)));
  $("send").disabled = !data.length;
}

function show() {
  const id = location.pathname.match(/^\/runs\/([^/]+)$/)?.[1];
  $("past").classList.remove("open");
  $("toggle").setAttribute("aria-expanded", "false");
  if (id) return openRun(decodeURIComponent(id));
  following?.abort();
  article.hidden = true;
  say("");
}

async function stop() {
  if (!state.started || state.finished) return following?.abort();
  if (state.run) await knock(`/v1/council/runs/${state.run}/stop`, { method: "POST" });
  else { following?.abort(); end("Stopped."); }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text) return;
  (select.value.startsWith("council/") ? askCouncil : askModel)(text, select.value);
});
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("stop").hidden) stop(); });
$("stop").addEventListener("click", stop);
$("toggle").addEventListener("click", () => {
  const open = $("past").classList.toggle("open");
  $("toggle").setAttribute("aria-expanded", String(open));
});
$("search").addEventListener("input", () => { clearTimeout($("search").timer); $("search").timer = setTimeout(listRuns, 200); });
window.addEventListener("popstate", show);

await listModels();
await listRuns();
show();
