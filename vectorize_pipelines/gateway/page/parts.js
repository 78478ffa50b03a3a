// What the pages of the HTTP server share: asking the server, and making and filling parts of a page.
//
// What the server answers is put into a page as text, never as markup.

export const el = (id) => document.getElementById(id);
export const numbers = new Intl.NumberFormat();
const times = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const datesAndTimes = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// ---------------------------------------------------------------------------------------------- the server

/** An answer that is no success. `fields`: what is wrong with which field of the request. */
export class ServerError extends Error {
  constructor(status, message, fields = []) {
    super(message);
    Object.assign(this, { status, fields });
  }
}

/** Returns the JSON of an answer, null where it is empty. Throws a ServerError. */
export async function ask(address, options = {}) {
  const headers = { Accept: "application/json, application/problem+json", ...options.headers };
  let response, text;
  try {
    response = await fetch(address, { ...options, headers });
    text = await response.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ServerError(0, "The server cannot be reached.");
  }
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    if (response.ok) throw new ServerError(response.status, "The server answered something that is no JSON.");
  }
  if (response.ok) return content;
  if (response.status === 401) throw new ServerError(401, "You are not signed in, or your session has ended.");
  const said = content?.detail || content?.title || response.statusText || `The server answered ${response.status}.`;
  const wait = response.headers.get("Retry-After");
  const advice = /^\d+$/.test(wait ?? "") ? ` Try again in ${counted(Number(wait), "second")}.` : "";
  throw new ServerError(response.status, closed(said) + advice, content?.errors ?? []);
}

/** Shows an error in words in a box of the page, or with null, none. */
export function showProblem(box, error) {
  box.replaceChildren();
  box.hidden = error === null;
  if (error === null) return;
  if (!(error instanceof ServerError)) throw error; // a defect of this script: the console has to say so
  box.append(element("p", error.message));
  const others = error.fields.filter((each) => !error.message.includes(each.problem));
  if (others.length) {
    box.append(element("ul", ...others.map((each) => element("li", element("code", each.field), ` ${each.problem}`))));
  }
  if (error.status === 401) {
    const back = encodeURIComponent(location.pathname + location.search);
    box.append(element("p", link(`/signin?next=${back}`, "Sign in")));
  }
}

// ---------------------------------------------------------------------------------------------- parts of the page

/** Returns a new element. Children are nodes, or what is shown as text. */
export function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

export function link(address, text) {
  const made = element("a", text);
  made.href = address;
  return made;
}

export const code = (text) => element("code", text);

export const fromTemplate = (id) => el(id).content.firstElementChild.cloneNode(true);

export function timeNode(iso) {
  const time = new Date(iso);
  if (Number.isNaN(time.getTime())) return element("span", iso);
  const isToday = time.toDateString() === new Date().toDateString();
  const made = element("time", (isToday ? times : datesAndTimes).format(time));
  made.dateTime = iso;
  made.title = iso;
  return made;
}

export const counted = (count, noun) => `${numbers.format(count)} ${noun}${count === 1 ? "" : "s"}`;

export const shortened = (text, length) => (text.length > length ? `${text.slice(0, length)}…` : text);

export const closed = (sentence) => (/[.!?…]$/.test(sentence) ? sentence : `${sentence}.`);

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

/** Sets a text only where it is another one: what a live region says again is read out again. */
export function say(id, text) {
  if (el(id).textContent !== text) el(id).textContent = text;
}

/** Shows why a list is empty, with a command that would fill it, or with null, nothing. */
export function showEmpty(id, text, command = null) {
  const box = el(id);
  box.hidden = text === null;
  box.replaceChildren(text ?? "", ...(command === null ? [] : [" ", code(command)]));
}
