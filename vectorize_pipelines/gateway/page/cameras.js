// The page of live cameras: the latest detection of each, as the WebSocket `/ws/risk` tells it.
//
// `?camera_id=` in the address, as often as there are cameras, has the server send those alone. Cards are brought up to
// date once a frame, however many detections come.

import { ask, counted, el, element, fromTemplate, numbers, say, showEmpty, showProblem } from "./parts.js";

/** The levels, the lowest first; a detection of which no group could be assessed has the first. */
const LEVELS = ["unknown", "none", "low", "medium", "high", "critical"];
const WORDS = { unknown: "Not assessed", none: "None", low: "Low", medium: "Medium", high: "High", critical: "Critical" };
const ALARMING = LEVELS.indexOf("high");
/** Detections of each camera that its little chart shows. */
const HISTORY = 40;
/** A camera's picture is changed at most so often. */
const PICTURE_MS = 500;
/** Screen readers are told of a rising risk at most so often. */
const ALARM_MS = 5_000;
/** A camera of which nothing came for so long is shown as silent. */
const SILENT_MS = 60_000;
/** The server says that it is there every 15 seconds: after so long without a word the connection is dead. */
const DEAD_MS = 40_000;
const LONGEST_WAIT_MS = 30_000;

/** What is known of each camera, by its id. */
const cameras = new Map();
const changed = new Set();
const chosen = { levels: new Set(), named: "", order: "name" };
let isDrawing = false;
let alarmAt = 0;
let missed = 0;

// ---------------------------------------------------------------------------------------------- the connection

const connection = { socket: null, failures: 0, timer: 0, watch: 0 };

const askedCameras = () => {
  const ids = new URLSearchParams(location.search).getAll("camera_id").filter(Boolean);
  return ids.length ? `?${new URLSearchParams(ids.map((id) => ["camera_id", id]))}` : "";
};

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/ws/risk${askedCameras()}`);
  let isOpen = false;
  connection.socket = socket;
  showConnection("", connection.failures ? "Reconnecting…" : "Connecting…");
  socket.addEventListener("open", () => {
    isOpen = true;
    connection.failures = 0;
    showProblem(el("cameras-error"), null);
    showConnection("live", "Live");
    watch(socket);
    showWhy();
  });
  socket.addEventListener("message", (event) => {
    watch(socket);
    take(JSON.parse(event.data));
  });
  socket.addEventListener("close", async () => {
    clearTimeout(connection.watch);
    showConnection("", "Reconnecting…");
    if (isOpen || (await mayTryAgain())) connection.timer = setTimeout(connect, backoff());
  });
}

/** Ends a connection from which nothing comes any more. */
function watch(socket) {
  clearTimeout(connection.watch);
  connection.watch = setTimeout(() => socket.close(), DEAD_MS);
}

/** Shows why the server has refused the WebSocket, which browsers do not tell; it says the same of this address. */
async function mayTryAgain() {
  try {
    await ask(`/risk/cameras${askedCameras()}`);
  } catch (error) {
    showProblem(el("cameras-error"), error);
    if (error.status === 401) {
      showConnection("", "Signed out");
      return false;
    }
  }
  return true;
}

/** Returns the milliseconds until the next try: more after each failure, and not the same in every browser. */
function backoff() {
  connection.failures += 1;
  return Math.min(LONGEST_WAIT_MS, 500 * 2 ** connection.failures) * (0.75 + Math.random() / 2);
}

function showConnection(kind, text) {
  el("connection").className = `connection ${kind}`;
  say("connection", text);
}

function take(message) {
  if (message.type === "alive") {
    if (message.receiving) showConnection("live", "Live");
    else showConnection("", "The server gets no results at the moment");
  } else if (message.type === "skipped") {
    missed += message.detections;
    showWhy();
  } else {
    takeDetection(message);
  }
}

// ---------------------------------------------------------------------------------------------- what cameras show

const levelOf = (detection) => detection.risk_level ?? "unknown";
const rankOf = (detection) => LEVELS.indexOf(levelOf(detection));

/** Returns the group that a detection is judged by: the one of the highest level, and of these of the highest score. */
function worstOf(detection) {
  const weight = (group) => LEVELS.indexOf(group.risk_level ?? "unknown") + (group.risk_score ?? 0) / 2;
  return detection.groups.reduce((worst, group) => (weight(group) > weight(worst) ? group : worst));
}

function takeDetection(detection) {
  const known = cameras.get(detection.camera_id);
  const camera = known ?? { id: detection.camera_id, history: [], element: null, newer: 0, pictureAt: 0, picture: null };
  if (detection.type === "detection" || !known) {
    camera.history.push([levelOf(detection), detection.risk_score ?? 0]);
    if (camera.history.length > HISTORY) camera.history.shift();
  }
  if (detection.late && known) return change(camera);
  if (known && rankOf(detection) >= ALARMING && rankOf(detection) > rankOf(known.latest)) alarm(detection);
  camera.newer += known && detection.message_id !== known.latest.message_id ? 1 : 0;
  camera.latest = detection;
  camera.seenAt = Date.now();
  cameras.set(camera.id, camera);
  return change(camera);
}

function change(camera) {
  changed.add(camera);
  draw();
}

function alarm(detection) {
  if (Date.now() - alarmAt < ALARM_MS) return;
  alarmAt = Date.now();
  say("alarm", `${detection.camera_id}: ${WORDS[levelOf(detection)]}. ${saidOf(worstOf(detection))}`);
}

/** Draws what has changed, in the next frame. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    for (const camera of changed) update(camera);
    changed.clear();
    arrange();
  });
}

function update(camera) {
  camera.element ??= newCard(camera);
  const part = (selector) => camera.element.querySelector(selector);
  drawHistory(part(".history"), camera.history);
  const details = part("details");
  if (details.open && camera.newer) {
    part("summary").textContent = `Close to go on: ${counted(camera.newer, "newer detection")}`;
    return;
  }
  camera.newer = 0;
  const detection = camera.latest;
  const worst = worstOf(detection);
  setLevel(camera.element, detection);
  showPicture(camera, worst.task_id);
  part("img").alt = `${camera.id}: ${saidOf(worst)}`;
  showAge(camera);
  part(".said > .summary").textContent = saidOf(worst);
  part(".hazards").replaceChildren(...worst.hazards.map((hazard) => element("li", hazard)));
  part(".recommendation").textContent = worst.recommendation;
  part(".incomplete").hidden = detection.complete;
  const absent = detection.groups_total - detection.groups.length;
  part(".incomplete").textContent = `${counted(absent, "group")} of ${detection.groups_total} not assessed in time`;
  part("summary").textContent = detection.groups.length > 1 ? `All ${detection.groups.length} groups` : "Details";
  if (details.open) showGroups(camera);
}

function newCard(camera) {
  const made = fromTemplate("camera-template");
  made.querySelector(".name").textContent = camera.id;
  made.querySelector(".name").title = camera.id;
  made.querySelector("details").addEventListener("toggle", (event) => {
    if (event.target.open) showGroups(camera);
    else change(camera);
  });
  return made;
}

function saidOf(group) {
  return group.error ? `Not assessed. ${group.error.class}: ${group.error.message}` : group.summary;
}

/** Marks a card, or a group in it, with the level of what it shows. */
function setLevel(target, judged) {
  const level = levelOf(judged);
  const badge = target.querySelector(".level");
  target.dataset.level = level;
  const score = judged.risk_score === null ? "" : ` ${judged.risk_score.toFixed(2)}`;
  badge.querySelector("span").textContent = WORDS[level] + score;
  badge.title = "The level of the risk, and its score from 0 to 1";
}

/** Shows the groups of the detection that a card is of. */
function showGroups(camera) {
  const shown = camera.latest.groups.map((group) => {
    const made = fromTemplate("group-template");
    setLevel(made, group);
    made.querySelector(".summary").textContent = saidOf(group);
    made.querySelector(".facts").replaceChildren(...factsOf(group).map((fact) => element("span", fact)));
    const image = made.querySelector("img");
    image.alt = `Group ${group.group_index}`;
    image.addEventListener("error", () => image.removeAttribute("src"));
    image.src = pictureAddress(group.task_id);
    return made;
  });
  camera.element.querySelector(".groups").replaceChildren(...shown);
}

function factsOf(group) {
  const facts = [`group ${group.group_index}`];
  if (group.model) facts.push(group.model);
  if (group.latency_ms) facts.push(`${numbers.format(Math.round(group.latency_ms))} ms`);
  if (group.prompt_tokens) facts.push(`${numbers.format(group.prompt_tokens + group.completion_tokens)} tokens`);
  return facts;
}

// ---------------------------------------------------------------------------------------------- pictures and charts

const pictureAddress = (taskId) => `/risk/picture?${new URLSearchParams({ task_id: taskId })}`;

/** Changes the picture of a card once the new one is there; at most every half second. */
function showPicture(camera, taskId) {
  if (camera.picture === taskId) return;
  const wait = camera.pictureAt + PICTURE_MS - Date.now();
  if (wait > 0) {
    clearTimeout(camera.pictureTimer);
    camera.pictureTimer = setTimeout(change, wait, camera);
    return;
  }
  camera.picture = taskId;
  camera.pictureAt = Date.now();
  const next = new Image();
  next.src = pictureAddress(taskId);
  next.decode().then(
    () => setPicture(camera, taskId, next.src),
    () => setPicture(camera, taskId, null),
  );
}

function setPicture(camera, taskId, address) {
  if (camera.picture !== taskId) return; // another one is on its way
  const image = camera.element.querySelector(".view img");
  image.hidden = address === null;
  camera.element.querySelector(".no-picture").hidden = address !== null;
  if (address !== null) image.src = address;
}

function drawHistory(list, history) {
  while (list.childElementCount < history.length) list.append(element("li"));
  history.forEach(([level, score], place) => {
    const bar = list.children[place];
    bar.dataset.level = level;
    bar.style.setProperty("--score", score);
  });
}

function showAge(camera) {
  const at = Date.parse(camera.latest.timestamp);
  const seconds = Math.max(0, Math.round((Date.now() - at) / 1000));
  const time = camera.element.querySelector("time");
  const text = seconds < 2 ? "now" : seconds < 60 ? `${seconds} s ago` : `${numbers.format(Math.floor(seconds / 60))} min ago`;
  if (time.textContent !== text) time.textContent = text;
  time.dateTime = camera.latest.timestamp;
  time.title = camera.latest.timestamp;
  camera.element.classList.toggle("silent", Date.now() - camera.seenAt > SILENT_MS);
}

// ---------------------------------------------------------------------------------------------- which, in which order

function isWanted(camera) {
  if (chosen.levels.size && !chosen.levels.has(levelOf(camera.latest))) return false;
  return camera.id.toLowerCase().includes(chosen.named);
}

const byName = new Intl.Collator(undefined, { numeric: true }).compare;

function byRisk(one, other) {
  const risk = (camera) => rankOf(camera.latest) + (camera.latest.risk_score ?? 0) / 2;
  return risk(other) - risk(one) || byName(one.id, other.id);
}

/** Brings the cards in order. Those that stay in their place are not touched, and keep the focus. */
function arrange() {
  const list = el("cameras");
  const wanted = [...cameras.values()].filter((camera) => camera.element && isWanted(camera));
  wanted.sort(chosen.order === "risk" ? byRisk : (one, other) => byName(one.id, other.id));
  const shown = new Set(wanted.map((camera) => camera.element));
  for (const card of [...list.children]) if (!shown.has(card)) card.remove();
  let place = list.firstElementChild;
  for (const { element: card } of wanted) {
    if (card === place) place = place.nextElementSibling;
    else list.insertBefore(card, place);
  }
  showCounts();
  showWhy(wanted.length);
}

function showCounts() {
  const counts = Object.fromEntries(LEVELS.map((level) => [level, 0]));
  for (const camera of cameras.values()) counts[levelOf(camera.latest)] += 1;
  for (const choice of el("levels").querySelectorAll("input")) {
    choice.nextElementSibling.querySelector("b").textContent = numbers.format(counts[choice.value]);
  }
}

/** Says how many cameras are shown, and why it is none. */
function showWhy(shown = el("cameras").childElementCount) {
  const parts = [shown === cameras.size ? counted(shown, "camera") : `${shown} of ${counted(cameras.size, "camera")}`];
  if (missed) parts.push(`${counted(missed, "detection")} came too fast for this page`);
  say("cameras-status", cameras.size ? parts.join(" · ") : "");
  if (shown) showEmpty("cameras-empty", null);
  else if (cameras.size) showEmpty("cameras-empty", "No camera is so.");
  else showEmpty("cameras-empty", "Nothing has been assessed lately. Cameras appear here with their first result.");
}

async function loadCaller() {
  const { caller } = await ask("/");
  el("caller").textContent = caller.name;
  el("sign-out").hidden = caller.name === "anonymous";
}

function start() {
  el("levels").addEventListener("change", () => {
    chosen.levels = new Set([...el("levels").querySelectorAll("input:checked")].map((choice) => choice.value));
    arrange();
  });
  el("named").addEventListener("input", (event) => {
    chosen.named = event.target.value.trim().toLowerCase();
    arrange();
  });
  el("order").addEventListener("change", (event) => {
    chosen.order = event.target.value;
    arrange();
  });
  setInterval(() => {
    for (const camera of cameras.values()) if (camera.element) showAge(camera);
  }, 1000);
  loadCaller().catch((error) => showProblem(el("cameras-error"), error));
  connect();
}

start();
