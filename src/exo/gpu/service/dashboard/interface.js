// The way to the service: questions, and the stream that goes on after a lost connection.

const TOKEN = "exo-gpu-token";

// Where nothing was heard for so long, not even a keepalive, the connection is taken for lost.
const SILENCE_MS = 40_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;

export class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail || problem.title || `the service answered ${status}`);
    this.status = status;
    this.errors = problem.errors ?? [];
  }
}

// The token comes behind the # of the address, which no browser sends anywhere.
export function takeToken() {
  const found = /^#token=(.+)$/.exec(location.hash);
  if (!found) return;
  keepToken(decodeURIComponent(found[1]));
  history.replaceState(null, "", `${location.pathname}#/cluster`);
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

function headers(more) {
  const token = sessionStorage.getItem(TOKEN);
  return { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...more };
}

async function refusal(answer) {
  let problem = {};
  try {
    problem = await answer.json();
  } catch {
    // a proxy's page is no problem of ours
  }
  return new Refused(problem, answer.status);
}

export async function ask(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) query.append(name, one);
  }
  const text = query.toString();
  const answer = await fetch(`api/v1/${path}${text ? `?${text}` : ""}`, {
    headers: headers(),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

export async function tell(path, body) {
  const answer = await fetch(`api/v1/${path}`, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// An id of ours as part of a path; slashes stay.
export function pathOf(id) {
  return id.split("/").map(encodeURIComponent).join("/");
}

// Listens for ever. `on.event(kind, data)`, `on.open()`, `on.lost(error, pauseMs)`.
export async function listen(on) {
  let last = null;
  let pause = FIRST_PAUSE_MS;
  for (;;) {
    const control = new AbortController();
    let watch = 0;
    const heard = () => {
      clearTimeout(watch);
      watch = setTimeout(() => control.abort(), SILENCE_MS);
    };
    try {
      heard();
      const answer = await fetch("api/v1/stream", {
        headers: headers(last ? { "Last-Event-ID": last } : {}),
        signal: control.signal,
      });
      if (!answer.ok) throw await refusal(answer);
      on.open();
      for await (const event of events(answer.body, heard)) {
        pause = FIRST_PAUSE_MS;
        await on.event(event.kind, event.data);
        last = event.id ?? last;
      }
      throw new Error("the service ended the connection");
    } catch (error) {
      on.lost(error, pause);
    } finally {
      clearTimeout(watch);
      control.abort();
    }
    await new Promise((done) => setTimeout(done, pause));
    pause = Math.min(LONGEST_PAUSE_MS, pause * 2);
  }
}

async function* events(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = parsed(block);
      if (event) yield event;
    }
  }
}

function parsed(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const place = line.indexOf(": ");
    if (place > 0) fields[line.slice(0, place)] = line.slice(place + 2);
  }
  if (!("data" in fields)) return null;
  return { id: fields.id, kind: fields.event ?? "message", data: JSON.parse(fields.data) };
}
