// The page of the HTTP server: searches collections, and follows requests while they are processed.
//
// The address holds what is shown, so that it can be sent to somebody, and the browser's Back works.

import {
  el,
  numbers,
  ServerError,
  ask,
  showProblem,
  element,
  link,
  code,
  fromTemplate,
  timeNode,
  counted,
  shortened,
  duration,
  say,
  showEmpty,
} from "./parts.js";

const percents = new Intl.NumberFormat(undefined, { style: "percent" });

/** Returns the address of a run in Dagster's UI. */
const runAddress = (run) => `/dagster/runs/${encodeURIComponent(run)}`;

/** Returns a link where an address is one of the web, else the text alone: no other scheme is followed from here. */
function addressNode(address, length = Infinity) {
  const text = shortened(address, address.startsWith("data:") ? 48 : length);
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return element("span", text);
  const made = link(address, text);
  made.rel = "noreferrer noopener";
  return made;
}

// ---------------------------------------------------------------------------------------------- words that matched

const words = new Intl.Segmenter(undefined, { granularity: "word" });

/** Words that stand in every text: marking them would say nothing. */
const COMMON = new Set(
  ("a an and are as at be by can do does for from has have how i in is it its me my not of on or that the their there " +
    "this to was we were what when where which who why will with you your").split(" "),
);
/** Words of so many letters are taken for the same if they differ in an ending of at most `ENDING` letters. */
const STEM = 4;
const ENDING = 3;

/** Returns a word without case and accents: "STRASSE" and "Straße" are the same. */
const folded = (word) => word.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toUpperCase().toLowerCase();

function wordsOf(query) {
  const all = Array.from(words.segment(query)).filter((each) => each.isWordLike).map((each) => folded(each.segment));
  const telling = all.filter((word) => !COMMON.has(word));
  return new Set(telling.length ? telling : all);
}

function isWanted(word, wanted) {
  if (wanted.has(word)) return true;
  if (word.length < STEM) return false;
  return [...wanted].some((other) => {
    const [short, long] = word.length < other.length ? [word, other] : [other, word];
    return short.length >= STEM && long.length - short.length <= ENDING && long.startsWith(short);
  });
}

/** Puts a text into an element, with the wanted words marked. */
function fillMarked(target, text, wanted) {
  if (!wanted.size) return target.replaceChildren(text);
  const nodes = [];
  let plain = "";
  for (const { segment, isWordLike } of words.segment(text)) {
    if (isWordLike && isWanted(folded(segment), wanted)) {
      nodes.push(plain, element("mark", segment));
      plain = "";
    } else {
      plain += segment;
    }
  }
  return target.replaceChildren(...nodes.filter((node) => node !== ""), plain);
}

// ---------------------------------------------------------------------------------------------- search

/** What the hits on the page are of: collection, query, filter, limit, and the key of an image. */
let searched = null;
let searching = null;
/** By name; null until the server has said which there are. */
let collections = null;
/** Settled once the server has said which collections there are and who is signed in, or has failed to. */
let ready = null;
/** The images that were chosen since the page was loaded, by keys that entries of the browser's history have. */
const images = new Map();
let chosenImage = null;
const QUESTION = el("query").placeholder;

const placeOfForm = () => ({
  tab: "search",
  collection: el("collection").value,
  query: chosenImage === null ? el("query").value.trim() : "",
  filter: el("filter").value.trim(),
  limit: el("limit").value,
  image: chosenImage,
});

function fillForm(place) {
  chooseCollection(place.collection);
  el("query").value = place.query;
  el("filter").value = place.filter;
  el("limit").value = place.limit;
  choose(place.image);
}

/** Chooses a collection, whether there is one of this name or not. */
function chooseCollection(name) {
  if (!name) return;
  const select = el("collection");
  if (![...select.options].some((option) => option.value === name)) select.append(new Option(name));
  select.value = name;
}

async function loadCollections() {
  const select = el("collection");
  const selected = select.value;
  const answer = await ask("/collections");
  collections = new Map(answer.collections.map((each) => [each.name, each]));
  select.replaceChildren(
    ...answer.collections.map((each) => new Option(`${each.name} (${numbers.format(each.rows)})`, each.name)),
  );
  if (collections.has(selected)) select.value = selected;
  showImageField();
}

function showImageField() {
  const has = collections?.get(el("collection").value)?.has_images ?? false;
  el("image-field").hidden = !has;
  if (!has) choose(null);
}

/** Has the next search look for an image instead of a text; null: for the text. */
function choose(key) {
  const image = images.get(key) ?? null;
  chosenImage = image === null ? null : key;
  el("chosen").hidden = image === null;
  el("query").disabled = image !== null;
  el("query").placeholder = image === null ? QUESTION : "the image below";
  el("image").value = "";
  if (image === null) return;
  el("chosen-picture").src = image.address;
  el("chosen-name").textContent = image.name;
}

function takeFile(file) {
  if (!file?.type.startsWith("image/")) return showProblem(el("search-error"), new ServerError(0, "That is no image."));
  showProblem(el("search-error"), null);
  const reader = new FileReader();
  reader.addEventListener("load", () => {
    const key = `${Date.now()}-${images.size}`;
    images.set(key, { name: file.name, address: reader.result });
    choose(key);
    el("go").focus();
  });
  reader.addEventListener("error", () => {
    showProblem(el("search-error"), new ServerError(0, `${file.name} cannot be read: ${reader.error.message}`));
  });
  reader.readAsDataURL(file);
}

async function submitSearch(event) {
  event.preventDefault();
  await ready;
  const place = placeOfForm();
  if (!place.query && place.image === null) {
    say("search-status", "Say what you are looking for.");
    el("query").focus();
    return;
  }
  go(place);
  search(place);
}

async function search(place) {
  searching?.abort();
  const attempt = new AbortController();
  searching = attempt;
  searched = place;
  const image = images.get(place.image) ?? null;
  showSearchProblem(null);
  if (collections?.size === 0) showEmpty("hits-empty", "There is no collection yet. This makes one:", "vectorize ingest ~/documents");
  else showEmpty("hits-empty", null);
  if (!place.query && image === null) {
    showHits([], place);
    say("search-status", place.image === null ? "" : "The page has not kept that image: choose it again.");
    return;
  }
  el("hits").ariaBusy = "true";
  say("search-status", "Searching…");
  const what = image === null ? { query: place.query } : { image: image.address };
  const body = JSON.stringify({ ...what, limit: Number(place.limit), filter: place.filter || null });
  const began = performance.now();
  try {
    const headers = { "Content-Type": "application/json" };
    const address = `/collections/${encodeURIComponent(place.collection)}/search`;
    const answer = await ask(address, { method: "POST", headers, body, signal: attempt.signal });
    showHits(answer.hits, place);
    const took = duration((performance.now() - began) / 1000);
    say("search-status", answer.hits.length ? `${counted(answer.hits.length, "hit")} in ${took}` : "");
    if (!answer.hits.length) showEmpty("hits-empty", "Nothing found.");
  } catch (error) {
    if (attempt.signal.aborted) return; // another search has begun
    showHits([], place);
    say("search-status", "");
    showSearchProblem(error);
  } finally {
    if (searching === attempt) el("hits").ariaBusy = "false";
  }
}

/** Shows an error of a search, and marks the fields of the form that it names. */
function showSearchProblem(error) {
  const fields = new Set((error?.fields ?? []).map((each) => each.field.split(/[.[]/)[0]));
  for (const name of ["query", "filter", "limit"]) {
    if (fields.has(name)) el(name).ariaInvalid = "true";
    else el(name).removeAttribute("aria-invalid");
  }
  showProblem(el("search-error"), error);
}

function showHits(hits, place) {
  const list = el("hits");
  const wanted = wordsOf(place.query);
  list.classList.toggle("pictures", hits.length > 0 && hits.every(isPicture));
  list.replaceChildren(...hits.map((hit) => hitElement(hit, place.collection, wanted)));
  const passages = [...list.querySelectorAll(".passage")];
  for (const passage of passages) passage.classList.add("cut");
  const whole = passages.filter((passage) => passage.scrollHeight <= passage.clientHeight + 1);
  for (const passage of passages) passage.parentElement.querySelector(".whole").hidden = whole.includes(passage);
  for (const passage of whole) passage.classList.remove("cut");
}

const isPicture = (hit) => hit.modality === "image";

function hitElement(hit, collection, wanted) {
  const made = fromTemplate("hit-template");
  const part = (name) => made.querySelector(`.${name}`);
  const title = titleOf(hit);
  part("title").textContent = title;
  part("number").textContent = hit.score.toFixed(3);
  part("score").style.setProperty("--score", Math.min(1, Math.max(0, hit.score)));
  part("place").replaceChildren(...placeNodes(hit, title));
  const passage = part("passage");
  passage.hidden = hit.text === null;
  if (hit.text !== null) fillMarked(passage, hit.text, wanted);
  if (/^[a-z]{2,3}(-[a-z0-9]+)*$/i.test(hit.metadata.language ?? "")) passage.lang = hit.metadata.language;
  part("whole").addEventListener("click", (event) => {
    const isCut = passage.classList.toggle("cut");
    event.target.ariaExpanded = String(!isCut);
    event.target.textContent = isCut ? "Show the whole passage" : "Show less of it";
  });
  if (isPicture(hit)) showPicture(part("picture"), hit, collection, title);
  part("lineage").querySelector("dl").append(...lineage(hit).flatMap(([name, value]) => termNodes(name, value)));
  return made;
}

const lastPart = (address) => address.replace(/\/+$/, "").split("/").pop();

function titleOf(hit) {
  const given = hit.metadata.title ?? hit.metadata.name;
  return typeof given === "string" && given.trim() ? given : shortened(lastPart(hit.uri ?? hit.source_id), 120);
}

function placeNodes(hit, title) {
  const address = hit.uri ?? hit.source_id;
  const nodes = address === title ? [] : [addressNode(address, 240)];
  if (hit.page !== null) nodes.push(element("span", `page ${numbers.format(hit.page)}`));
  if (hit.metadata.section) nodes.push(element("span", written(hit.metadata.section)));
  const row = hit.metadata.table_row_number ?? hit.metadata.row_number ?? hit.metadata.row;
  if (row !== undefined) nodes.push(element("span", `row ${written(row)}`));
  return nodes;
}

function showPicture(box, hit, collection, title) {
  const image = box.querySelector("img");
  box.hidden = false;
  image.alt = title;
  image.addEventListener("error", () => box.replaceChildren(element("p", "No preview")));
  image.src = `/collections/${encodeURIComponent(collection)}/rows/${encodeURIComponent(hit.id)}/thumbnail`;
}

const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** Returns the terms and values of where a hit comes from; a term without a value is a heading. */
function lineage(hit) {
  // As the record has them, in one: the model's fingerprint, and behind it, of a document, that of what cut it.
  const cut = hit.model.lastIndexOf(" chunker=");
  const model = cut < 0 ? hit.model : hit.model.slice(0, cut);
  const range = hit.start === null ? null : `${numbers.format(hit.start)} to ${numbers.format(hit.end)}`;
  const rows = [
    ["Source", hit.source_id],
    ["Address", hit.uri === null ? null : addressNode(hit.uri)],
    ["Page", hit.page],
    ["Characters", range],
    ["Position", hit.item_index],
    ["Model", model],
    ["Chunker", cut < 0 ? null : hit.model.slice(cut + " chunker=".length)],
    ["Run", hit.run_id ? link(runAddress(hit.run_id), hit.run_id) : null],
    ["Embedded", timeNode(hit.embedded_at)],
    ["Time of the source", timeNode(hit.occurred_at)],
    ["Partition", hit.partition],
    ["Content hash", code(hit.content_hash)],
    ["Id", code(hit.id)],
  ];
  const metadata = Object.entries(hit.metadata).map(([name, value]) => [name, written(value)]);
  const shown = rows.filter(([, value]) => value !== null);
  return metadata.length ? [...shown, ["Metadata", null], ...metadata] : shown;
}

function termNodes(name, value) {
  const term = element("dt", name);
  if (value !== null) return [term, element("dd", value)];
  term.className = "part";
  return [term];
}

// ---------------------------------------------------------------------------------------------- requests

const PAGE_SIZE = 50;
/** How often what is being processed is asked for its progress, which is no event. */
const PROGRESS_MS = 2000;
/** The list is asked for once in this time at most, however many events there are. */
const EVENTS_MS = 1000;
const LONGEST_WAIT_MS = 30_000;
const KINDS = {
  text_vectorization: "text",
  image_vectorization: "image",
  document_vectorization: "document",
  batch_vectorization: "batch",
};
const CANCELLING = "It is being cancelled.";

/** The list as it is shown, and what keeps it up to date. `failures`: of the list, of the events, one after another. */
const requests = {
  isOpen: false,
  state: "",
  tasks: [],
  cursor: null,
  isLoaded: false,
  elements: new Map(),
  notes: new Map(),
  source: null,
  failures: { list: 0, events: 0 },
  timer: 0,
  due: Infinity,
  reconnecting: 0,
  isAsking: false,
  isLoadingMore: false,
};
let mayCancel = true;

const isFinal = (status) => !["pending", "processing"].includes(status);

function openRequests(state) {
  if (state !== requests.state) Object.assign(requests, { state, tasks: [], cursor: null, isLoaded: false });
  requests.isOpen = true;
  for (const choice of el("states").querySelectorAll("input")) choice.checked = choice.value === state;
  if (!requests.isLoaded) {
    renderTasks();
    showEmpty("tasks-empty", null);
    say("requests-status", "Loading…");
  }
  if (requests.source === null) connect();
  refreshIn(0);
}

function closeRequests() {
  requests.isOpen = false;
  requests.source?.close();
  clearTimeout(requests.timer);
  clearTimeout(requests.reconnecting);
  Object.assign(requests, { source: null, due: Infinity });
}

/** Follows the events of all requests. What came between the list and the first event is in the list asked for then. */
function connect() {
  const source = new EventSource("/events");
  requests.source = source;
  showConnection("", "Connecting…");
  source.addEventListener("open", () => {
    requests.failures.events = 0;
    showConnection("live", "Live");
    refreshIn(0);
  });
  source.addEventListener("status", (event) => applyEvent(JSON.parse(event.data)));
  source.addEventListener("reset", () => refreshIn(0));
  source.addEventListener("error", () => {
    showConnection("", "Reconnecting…");
    // After a broken connection it comes back by itself; after a refusal it does not, and the list says what it was.
    if (source.readyState !== EventSource.CLOSED) return;
    requests.reconnecting = setTimeout(connect, backoff("events"));
    refreshIn(0);
  });
}

/** Returns the milliseconds until the next try: more after each failure, and not the same in every browser. */
function backoff(what) {
  requests.failures[what] += 1;
  return Math.min(LONGEST_WAIT_MS, 500 * 2 ** requests.failures[what]) * (0.75 + Math.random() / 2);
}

function showConnection(kind, text) {
  el("connection").className = `connection ${kind}`;
  say("connection", text);
}

/** Asks for the list in so many milliseconds, or earlier where that was decided already. */
function refreshIn(milliseconds) {
  const due = performance.now() + milliseconds;
  if (!requests.isOpen || due >= requests.due) return;
  clearTimeout(requests.timer);
  requests.due = due;
  requests.timer = setTimeout(refresh, milliseconds);
}

async function refresh() {
  requests.due = Infinity;
  if (requests.isAsking) return refreshIn(100);
  requests.isAsking = true;
  const state = requests.state;
  const isCurrent = () => requests.isOpen && requests.state === state;
  try {
    const page = await ask(tasksAddress(state, null));
    if (isCurrent()) showFirstPage(page);
  } catch (error) {
    if (isCurrent()) refreshFailed(error);
  } finally {
    requests.isAsking = false;
  }
}

function tasksAddress(state, cursor) {
  const parameters = new URLSearchParams({ page_size: PAGE_SIZE });
  if (state) parameters.set("status_filter", state);
  if (cursor !== null) parameters.set("cursor", cursor);
  return `/tasks?${parameters}`;
}

function refreshFailed(error) {
  if (!requests.isLoaded) say("requests-status", "");
  showProblem(el("requests-error"), error);
  if (error.status === 401) {
    closeRequests();
    showConnection("", "Signed out");
  } else {
    refreshIn(backoff("list"));
  }
}

function showFirstPage(page) {
  showProblem(el("requests-error"), null);
  requests.failures.list = 0;
  const fresh = new Set(page.tasks.map((task) => task.task_id));
  const oldest = Date.parse(page.tasks.at(-1)?.created_at);
  // Pages that were loaded after the first stay, unless so many requests are new that there is a gap before them.
  const isJoined = page.next_cursor !== null && requests.tasks.some((task) => fresh.has(task.task_id));
  const isOlder = (task) => !fresh.has(task.task_id) && Date.parse(task.created_at) <= oldest;
  const older = isJoined ? requests.tasks.filter(isOlder) : [];
  if (!older.length) requests.cursor = page.next_cursor;
  requests.tasks = [...page.tasks, ...older];
  requests.isLoaded = true;
  showCounts(page);
  renderTasks();
  if (requests.tasks.some((task) => task.status === "processing") && !document.hidden) refreshIn(PROGRESS_MS);
}

function showCounts(page) {
  const all = Object.values(page.counts).reduce((sum, count) => sum + count, 0);
  for (const choice of el("states").querySelectorAll("input")) {
    const count = choice.value ? (page.counts[choice.value] ?? 0) : all;
    choice.nextElementSibling.querySelector("b").textContent = numbers.format(count);
  }
  const shown = requests.tasks.length;
  const hasMore = requests.cursor !== null;
  say("requests-status", hasMore ? `${numbers.format(shown)} of ${counted(page.total, "request")}` : counted(shown, "request"));
  el("load-more").hidden = !hasMore;
  if (shown) showEmpty("tasks-empty", null);
  else if (requests.state) showEmpty("tasks-empty", `No request is ${requests.state}.`);
  else showEmpty("tasks-empty", "There is no request yet. This sends one:", 'vectorize submit "a text"');
}

async function loadMore() {
  if (requests.isLoadingMore || requests.cursor === null) return;
  requests.isLoadingMore = true;
  const { state, cursor } = requests;
  try {
    const page = await ask(tasksAddress(state, cursor));
    if (state !== requests.state || cursor !== requests.cursor) return;
    const known = new Set(requests.tasks.map((task) => task.task_id));
    const added = page.tasks.filter((task) => !known.has(task.task_id));
    requests.tasks.push(...added);
    requests.cursor = page.next_cursor;
    showCounts(page);
    renderTasks();
    if (requests.cursor === null) requests.elements.get(added[0]?.task_id)?.querySelector(".id").focus();
  } catch (error) {
    showProblem(el("requests-error"), error);
  } finally {
    requests.isLoadingMore = false;
  }
}

/** Takes over what an event says of a request that is shown; the list, asked for soon, has the rest. */
function applyEvent(event) {
  const task = requests.tasks.find((each) => each.task_id === event.task_id);
  if (task) {
    Object.assign(task, { status: event.status, error: event.error, run_id: event.run_id ?? task.run_id });
    task.warnings = event.warnings;
    if (event.status === "completed") {
      task.result = { collection: event.collection, vector_count: event.vector_count };
    }
    if (requests.state && requests.state !== event.status) requests.tasks.splice(requests.tasks.indexOf(task), 1);
    renderTasks();
  }
  refreshIn(EVENTS_MS);
}

/** Brings the list in line with the tasks. Elements stay, and with them the focus and what is selected. */
function renderTasks() {
  const list = el("tasks");
  const ids = new Set(requests.tasks.map((task) => task.task_id));
  for (const [id, made] of requests.elements) {
    if (ids.has(id)) continue;
    const next = made.nextElementSibling ?? made.previousElementSibling;
    if (made.contains(document.activeElement)) (next?.querySelector(".id") ?? el("main")).focus();
    made.remove();
    requests.elements.delete(id);
    requests.notes.delete(id);
  }
  let place = list.firstElementChild;
  for (const task of requests.tasks) {
    const made = requests.elements.get(task.task_id) ?? newTask(task.task_id);
    updateTask(made, task);
    if (made === place) place = place.nextElementSibling;
    else list.insertBefore(made, place);
  }
}

function newTask(id) {
  const made = fromTemplate("task-template");
  requests.elements.set(id, made);
  made.querySelector(".id").textContent = id;
  made.querySelector(".cancel").ariaLabel = `Cancel ${id}`;
  made.querySelector(".cancel").addEventListener("click", () => confirmCancel(id));
  return made;
}

function updateTask(made, task) {
  if (isFinal(task.status) && requests.notes.get(task.task_id) === CANCELLING) requests.notes.delete(task.task_id);
  const note = requests.notes.get(task.task_id) ?? null;
  const content = JSON.stringify([task, mayCancel, note]);
  if (made.rendered === content) return;
  made.rendered = content;
  const part = (name) => made.querySelector(`.${name}`);
  made.dataset.state = task.status;
  part("state").textContent = task.status.charAt(0).toUpperCase() + task.status.slice(1);
  part("facts").replaceChildren(...factNodes(task));
  part("progress").hidden = task.status !== "processing";
  part("progress").querySelector("progress").value = task.progress;
  part("progress").querySelector("span").textContent = percents.format(task.progress);
  part("failure").hidden = task.error === null;
  part("failure").textContent = task.error === null ? "" : `${task.error.class}: ${task.error.message}`;
  part("note").hidden = note === null;
  part("note").textContent = note;
  part("run").hidden = !task.run_id;
  if (task.run_id) part("run").href = runAddress(task.run_id);
  const cancel = part("cancel");
  const hadFocus = cancel === document.activeElement;
  cancel.hidden = !mayCancel || isFinal(task.status);
  if (cancel.hidden && hadFocus) part("id").focus();
}

function factNodes(task) {
  const facts = [KINDS[task.task_type] ?? task.task_type ?? task.modality];
  if (task.items > 1) facts.push(counted(task.items, "item"));
  if (task.collection) facts.push(`into ${task.collection}`);
  if (task.result !== null) facts.push(counted(task.result.vector_count, "vector"));
  if (task.processing_time !== null) facts.push(`took ${duration(task.processing_time)}`);
  for (const warning of task.warnings ?? []) facts.push(`${warning.kind}: ${warning.what}`);
  return [element("span", "submitted ", timeNode(task.created_at)), ...facts.map((fact) => element("span", fact))];
}

function confirmCancel(id) {
  const dialog = el("cancel-dialog");
  el("cancel-id").textContent = id;
  dialog.returnValue = "keep";
  dialog.addEventListener("close", () => dialog.returnValue === "cancel" && cancelTask(id), { once: true });
  dialog.showModal();
}

async function cancelTask(id) {
  try {
    await ask(`/tasks/${encodeURIComponent(id)}`, { method: "DELETE" });
    requests.notes.set(id, CANCELLING);
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    if (error.status === 401) return refreshFailed(error);
    if (error.status === 403) mayCancel = false;
    requests.notes.set(id, error.message);
  }
  renderTasks();
  refreshIn(0);
}

// ---------------------------------------------------------------------------------------------- tabs and the address

const TABS = ["search", "requests"];

function placeOfAddress() {
  const given = new URLSearchParams(location.search);
  const limit = given.get("limit") ?? "";
  return {
    tab: given.get("tab") === "requests" ? "requests" : "search",
    collection: given.get("collection") ?? "",
    query: given.get("q") ?? "",
    filter: given.get("filter") ?? "",
    limit: /^\d{1,4}$/.test(limit) ? limit : "10",
    image: history.state?.image ?? null,
    state: given.get("state") ?? "",
  };
}

function addressOf(place) {
  const given =
    place.tab === "requests"
      ? { tab: "requests", state: place.state }
      : {
          collection: place.collection,
          q: place.query,
          filter: place.filter,
          limit: place.limit === "10" ? "" : place.limit,
        };
  const parameters = new URLSearchParams(Object.entries(given).filter(([, value]) => value));
  return parameters.size ? `/?${parameters}` : "/";
}

/** Makes an entry of the browser's history for a place, unless it is the present one. */
function go(place) {
  const address = addressOf(place);
  const image = place.image ?? null;
  document.title = titleOfPlace(place);
  if (address === location.pathname + location.search && image === (history.state?.image ?? null)) return;
  history.pushState({ image }, "", address);
}

function titleOfPlace(place) {
  if (place.tab === "requests") return "Requests · vectorize";
  return place.query ? `${shortened(place.query, 60)} · ${place.collection} · vectorize` : "Search · vectorize";
}

function showTab(name) {
  for (const tab of TABS) {
    const isShown = tab === name;
    el(`${tab}-tab`).ariaSelected = String(isShown);
    el(`${tab}-tab`).tabIndex = isShown ? 0 : -1;
    el(`${tab}-panel`).hidden = !isShown;
  }
}

/** Shows what the address says: when the page is opened, and after Back and Forward. */
function enter() {
  const place = placeOfAddress();
  document.title = titleOfPlace(place);
  showTab(place.tab);
  if (place.tab === "requests") return openRequests(place.state);
  closeRequests();
  const isShown = searched !== null && addressOf(searched) === addressOf(place) && searched.image === place.image;
  if (isShown) return undefined;
  fillForm(place);
  return searchAt(place);
}

/** Searches as a place says, in the collection that is chosen where it says none. */
function searchAt(place) {
  chooseCollection(place.collection);
  showImageField();
  return search({ ...place, collection: el("collection").value });
}

function chooseTab(name) {
  showTab(name);
  if (name === "requests") {
    go({ tab: "requests", state: requests.state });
    openRequests(requests.state);
  } else {
    closeRequests();
    go(searched ?? placeOfForm());
  }
}

function moveBetweenTabs(event) {
  const present = TABS.indexOf(event.target.id.replace("-tab", ""));
  const steps = { ArrowLeft: present - 1, ArrowRight: present + 1, Home: 0, End: TABS.length - 1 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const name = TABS[(steps[event.key] + TABS.length) % TABS.length];
  el(`${name}-tab`).focus();
  chooseTab(name);
}

/** Shows who is signed in, and leaves out what they may not do. */
async function loadCaller() {
  const { caller } = await ask("/");
  mayCancel = caller.scopes.includes("submit");
  el("caller").textContent = caller.name;
  el("sign-out").hidden = caller.name === "anonymous";
  renderTasks();
}

function listenForFiles() {
  const form = el("search-form");
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  // A file dropped beside the form would be opened instead of the page.
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => holdsFiles(event) && event.preventDefault());
  }
  form.addEventListener("dragover", (event) => {
    form.classList.toggle("dropping", holdsFiles(event) && !el("image-field").hidden);
  });
  for (const name of ["dragleave", "drop"]) form.addEventListener(name, () => form.classList.remove("dropping"));
  form.addEventListener("drop", (event) => {
    if (holdsFiles(event) && !el("image-field").hidden) takeFile(event.dataTransfer.files[0]);
  });
  form.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file && !el("image-field").hidden) takeFile(file);
  });
  el("image").addEventListener("change", (event) => event.target.files[0] && takeFile(event.target.files[0]));
}

function listen() {
  el("search-form").addEventListener("submit", submitSearch);
  el("collection").addEventListener("change", showImageField);
  el("chosen-remove").addEventListener("click", () => {
    choose(null);
    el("query").focus();
  });
  listenForFiles();
  for (const name of TABS) {
    el(`${name}-tab`).addEventListener("click", () => chooseTab(name));
    el(`${name}-tab`).addEventListener("keydown", moveBetweenTabs);
  }
  el("states").addEventListener("change", (event) => {
    go({ tab: "requests", state: event.target.value });
    openRequests(event.target.value);
  });
  el("load-more").addEventListener("click", loadMore);
  document.addEventListener("visibilitychange", () => !document.hidden && refreshIn(0));
  window.addEventListener("popstate", enter);
}

async function start() {
  const place = placeOfAddress();
  listen();
  showTab(place.tab);
  document.title = titleOfPlace(place);
  fillForm(place); // before anything is waited for, or what is typed meanwhile would be lost
  ready = Promise.all([loadCollections(), loadCaller()]).then(() => null, (error) => error);
  if (place.tab === "requests") enter(); // which need no collection
  const problem = await ready;
  el("collection").required = true; // not before: who is quicker than the collections need not choose one
  if (placeOfAddress().tab === "search") searchAt(placeOfAddress());
  if (problem !== null) showProblem(el("search-error"), problem);
}

start();
