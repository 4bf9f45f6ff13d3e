// Keeps what is known up to date: by server-sent events where they can be had, else by asking again and again.

import { addressOf, get } from "./api.js";

const POLL_MILLISECONDS = 5_000;
/** Health has no event; and a connection that hangs is found out by it. */
const HEALTH_MILLISECONDS = 30_000;
/** After events were refused: all places of listeners are taken, or a proxy in between holds them back. */
const EVENTS_AGAIN_MILLISECONDS = 60_000;
const RETRY_MILLISECONDS = 2_000;

/** What is known, and how: `connecting`, `live`, `polling` or `lost` (since `lostAt`, because of `problem`). */
export const state = {
  connection: "connecting",
  lostAt: null,
  problem: null,
  health: null,
  projects: [],
  /** By id. */
  repositories: new Map(),
  isLoaded: false,
};

let handlers = {};
let source = null;
let lastEventId = "";
let timer = null;
let eventsRefusedAt = -Infinity;
/** Events so far: an answer that was asked for before the last is old. */
let heard = 0;

/**
 * Begins. `changed` is called when `state` changed, `reloaded` when all of it was loaded anew, `deployment` with each
 * one that changed, `moved` with a repository whose status did.
 */
export function begin(calls) {
  handlers = calls;
  // A page that nobody sees holds no connection: browsers have only a few a host.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : refresh()));
  refresh();
}

/** Loads everything anew, and goes on from there. */
export async function refresh() {
  clearTimeout(timer);
  const before = heard;
  try {
    await load();
    state.lostAt = null;
    if (!source && !document.hidden && performance.now() - eventsRefusedAt > EVENTS_AGAIN_MILLISECONDS) listen();
    state.connection = source?.readyState === EventSource.OPEN ? "live" : "polling";
    handlers.reloaded();
  } catch (error) {
    close();
    state.connection = "lost";
    state.lostAt ??= new Date();
    state.problem = error;
  }
  handlers.changed();
  clearTimeout(timer);
  if (document.hidden) return;
  if (state.lostAt || heard !== before) timer = setTimeout(refresh, RETRY_MILLISECONDS);
  else if (state.connection === "live") timer = setTimeout(watchHealth, HEALTH_MILLISECONDS);
  else timer = setTimeout(refresh, POLL_MILLISECONDS);
}

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

async function load() {
  const [health, projects, list] = await Promise.all([askHealth(), get("api/projects"), get("api/repositories")]);
  const before = state.repositories;
  Object.assign(state, { health, projects, repositories: new Map(list.map((one) => [one.id, one])), isLoaded: true });
  for (const one of list) tellMove(before.get(one.id), one);
}

/** Also where the database cannot be used. */
const askHealth = () => get("api/health").catch((error) => error.answer?.checks ? error.answer : Promise.reject(error));

async function watchHealth() {
  try {
    state.health = await askHealth();
    handlers.changed();
    if (!source) return;
    clearTimeout(timer);
    timer = setTimeout(watchHealth, HEALTH_MILLISECONDS);
  } catch {
    refresh();
  }
}

function listen() {
  const opened = new EventSource(addressOf(`api/events${lastEventId && `?last_event_id=${lastEventId}`}`));
  source = opened;
  // What changed between the last look and this moment.
  opened.onopen = refresh;
  opened.onerror = () => {
    if (source !== opened) return;
    // Refused or broken: what is asked for then also tells whether anybody answers.
    if (opened.readyState === EventSource.CLOSED) eventsRefusedAt = performance.now();
    close();
    refresh();
  };
  const on = (name, take) =>
    opened.addEventListener(name, (event) => {
      lastEventId = event.lastEventId;
      heard += 1;
      take(event.data);
    });
  on("deployment", (data) => takeDeployment(JSON.parse(data)));
  on("repository", (data) => takeRepository(JSON.parse(data)));
  on("projects", refresh);
  on("reset", refresh);
}

function takeRepository(repository) {
  tellMove(state.repositories.get(repository.id), repository);
  state.repositories.set(repository.id, repository);
  handlers.changed();
}

function takeDeployment(deployment) {
  const repository = state.repositories.get(deployment.repository_id);
  const { status } = deployment;
  if (repository && status !== "skipped" && !(repository.last_deployment?.id > deployment.id)) {
    takeRepository({ ...repository, last_deployment: deployment, status });
  }
  handlers.deployment(deployment);
}

function tellMove(before, after) {
  if (before && before.status !== after.status) handlers.moved(after);
}
