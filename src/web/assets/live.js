// Keeps what is known up to date: by server-sent events where they can be had, else by asking again and again.

import { ApiError, get } from "./api.js";

const POLL_MILLISECONDS = 5_000;
const HEALTH_MILLISECONDS = 30_000;
/** After events were refused: the listeners' places may be taken, or a proxy in between holds them back. */
const EVENTS_AGAIN_MILLISECONDS = 60_000;
/** An event stream that says nothing at all for so long may be one that a proxy swallows: then it is asked as well. */
const RETRY_MILLISECONDS = [1_000, 2_000, 3_000, 5_000];

/** What is known, and how: `connecting`, `live`, `polling` or `lost`. */
export const state = {
  connection: "connecting",
  /** Since when nobody answers. */
  lostAt: null,
  /** Why not. */
  problem: null,
  health: null,
  projects: [],
  /** By id. */
  repositories: new Map(),
  /** Whether it was ever loaded. */
  isLoaded: false,
};

let handlers = {};
let source = null;
let lastEventId = null;
let timer = null;
let healthTimer = null;
let eventsRefusedAt = -Infinity;
let failures = 0;

/**
 * Begins. `changed` is called when `state` changed, `deployment` with each deployment that did, `reloaded` when all was
 * loaded anew, `moved` with a repository before and after its status changed.
 */
export function begin(calls) {
  handlers = calls;
  // A page that nobody sees holds no connection: browsers have only a few for each host.
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : poll()));
  poll();
}

/** Loads everything anew now. */
export const refresh = () => poll();

function pause() {
  clearTimeout(timer);
  clearInterval(healthTimer);
  source?.close();
  source = null;
}

async function poll() {
  clearTimeout(timer);
  try {
    await load();
    failures = 0;
    if (!source && !document.hidden && performance.now() - eventsRefusedAt > EVENTS_AGAIN_MILLISECONDS) listen();
    if (!source) settle("polling");
  } catch (error) {
    lost(error);
  }
  if (!source && !document.hidden) {
    timer = setTimeout(poll, failures ? RETRY_MILLISECONDS[Math.min(failures, RETRY_MILLISECONDS.length) - 1] : POLL_MILLISECONDS);
  }
}

async function load() {
  const [health, projects, repositories] = await Promise.all([askHealth(), get("api/projects"), get("api/repositories")]);
  state.health = health;
  state.projects = projects;
  const before = state.repositories;
  state.repositories = new Map(repositories.map((repository) => [repository.id, repository]));
  state.isLoaded = true;
  for (const repository of repositories) tellMove(before.get(repository.id), repository);
  handlers.reloaded();
}

/** 503 is an answer too: the database cannot be used. */
async function askHealth() {
  const response = await fetch("api/health", { cache: "no-store" });
  return response.json();
}

function lost(error) {
  failures += 1;
  source?.close();
  source = null;
  state.lostAt ??= new Date();
  state.problem = error instanceof ApiError ? error : new ApiError(0, "Shiparr does not answer");
  settle("lost");
}

function settle(connection) {
  if (connection !== "lost") {
    state.lostAt = null;
    state.problem = null;
  }
  state.connection = connection;
  handlers.changed();
}

function listen() {
  const resume = lastEventId ? `?last_event_id=${encodeURIComponent(lastEventId)}` : "";
  const opened = new EventSource(`api/events${resume}`);
  source = opened;
  opened.onopen = async () => {
    // What changed between the last look and this moment.
    await reload();
    if (source === opened) settle("live");
  };
  opened.onerror = () => {
    if (source !== opened) return;
    // Refused, or broken: what comes next is asked for, which also tells whether anybody answers.
    if (opened.readyState === EventSource.CLOSED) eventsRefusedAt = performance.now();
    opened.close();
    source = null;
    poll();
  };
  const on = (name, take) =>
    opened.addEventListener(name, (event) => {
      if (event.lastEventId) lastEventId = event.lastEventId;
      take(event.data);
    });
  on("deployment", (data) => takeDeployment(JSON.parse(data)));
  on("repository", (data) => takeRepository(JSON.parse(data)));
  on("projects", reload);
  on("reset", reload);
  clearInterval(healthTimer);
  healthTimer = setInterval(watchHealth, HEALTH_MILLISECONDS);
}

/** Loads everything while events are heard. */
async function reload() {
  try {
    await load();
    handlers.changed();
  } catch (error) {
    if (source) {
      lost(error);
      poll();
    }
  }
}

/** Health changes without an event; and a connection that hangs is found out by it. */
async function watchHealth() {
  if (!source) return;
  try {
    state.health = await askHealth();
    handlers.changed();
  } catch (error) {
    lost(error);
    poll();
  }
}

function takeRepository(repository) {
  const before = state.repositories.get(repository.id);
  state.repositories.set(repository.id, repository);
  tellMove(before, repository);
  handlers.changed();
}

function takeDeployment(deployment) {
  const repository = state.repositories.get(deployment.repository_id);
  const last = repository?.last_deployment;
  if (repository && (!last || last.id <= deployment.id)) {
    const changed = { ...repository, last_deployment: deployment };
    if (deployment.status !== "skipped") changed.status = deployment.status;
    if (deployment.status === "success") changed.last_commit_hash = deployment.commit_hash;
    takeRepository(changed);
  }
  handlers.deployment(deployment);
}

function tellMove(before, after) {
  if (before && before.status !== after.status) handlers.moved(before, after);
}
