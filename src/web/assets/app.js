// The page: its address names the view, what is known is drawn again whenever it changes.

import { askCancel, askDeploy } from "./dialogs.js";
import { h, show } from "./dom.js";
import { begin, refresh, state } from "./live.js";
import { connectionLine, notices } from "./notices.js";
import { repositoryWord } from "./text.js";
import { ContainerView, DeploymentView, Nowhere, Overview, RepositoryView, to } from "./views.js";

/** Ages go on. */
const TICK_MILLISECONDS = 5_000;

const place = (id) => document.getElementById(id);
let view = null;
let loading = null;
let isDrawing = false;

/** Draws once for all changes in one go. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  queueMicrotask(() => {
    isDrawing = false;
    drawNow();
  });
}

function drawNow() {
  const { host, version } = state.health ?? {};
  document.title = [view.title(), "Shiparr", host].filter(Boolean).join(" · ");
  show(place("host"), host ?? "");
  show(place("connection"), connectionLine());
  show(place("notices"), notices(view instanceof Overview));
  show(place("view"), view.render());
  show(place("foot"), version ? `Shiparr ${version}` : "");
  view.mounted?.();
}

// ---- Addresses

/** Projects, repositories and containers have names that need no encoding. */
const ROUTES = [
  [/^\/$/, Overview],
  [/^\/deployments\/(\d{1,15})$/, DeploymentView],
  [/^\/repositories\/([\w-]+)\/([\w-]+)$/, RepositoryView],
  [/^\/repositories\/([\w-]+)\/([\w-]+)\/containers\/([\w.-]+)$/, ContainerView],
  [/^/, Nowhere],
];

function viewOf() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  const [pattern, View] = ROUTES.find(([pattern]) => pattern.test(path));
  return new View(...pattern.exec(path).slice(1), query);
}

async function open() {
  view?.leave?.();
  const opened = viewOf();
  const isFirst = view === null;
  view = opened;
  place("view").replaceChildren();
  drawNow();
  if (!isFirst) {
    // Readers hear where they are, and the next Tab goes on from there.
    scrollTo(0, 0);
    focusHeading();
  }
  await loadView();
  const { activeElement } = document;
  if (view === opened && !isFirst && [document.body, place("main")].includes(activeElement)) focusHeading();
}

const focusHeading = () => (document.querySelector("h1") ?? place("main")).focus({ preventScroll: true });

async function loadView() {
  const loaded = view;
  await (loading = loaded.load?.());
  if (view === loaded) draw();
}

// ---- What people do

const actions = {
  skip: () => place("main").focus(),
  deploy: ({ repository, commit }) => askDeploy(state.repositories.get(Number(repository)), commit, (id) => (location.hash = `#/deployments/${id}`)),
  cancel: ({ deployment }) => {
    const known = [view.deployment, ...[...state.repositories.values()].map((one) => one.last_deployment)];
    askCancel(known.find((one) => one?.id === Number(deployment)), refresh);
  },
  more: () => view.more().then(draw, (error) => announce(error.message)),
  containers: () => view.loadContainers().then(draw),
  "show-kind": ({ kind }) => filter(view.words, kind),
};

document.addEventListener("click", (event) => {
  const element = event.target.closest("[data-action]");
  if (!element) return;
  event.preventDefault();
  if (element.getAttribute("aria-disabled") === "true") announce(element.title);
  else actions[element.dataset.action](element.dataset);
});

document.addEventListener("input", (event) => {
  if (event.target.id === "filter") filter(event.target.value, view.kind);
});

/** The filter is in the address, without a step of history for each letter. */
function filter(words, kind) {
  history.replaceState(null, "", to(view.filter(words, kind)));
  draw();
}

function announce(text) {
  const line = h("p", text);
  place("announcements").append(line);
  setTimeout(() => line.remove(), TICK_MILLISECONDS);
}

begin({
  changed: draw,
  reloaded: loadView,
  deployment: async (one) => {
    // What is being loaded is older.
    await loading;
    await view.take?.(one);
    draw();
  },
  moved: (one) => one.status === "pending" || announce(`${one.project}/${one.name}: ${repositoryWord(one)}`),
});
addEventListener("hashchange", open);
// A page that nobody sees gives a log's connection back too.
document.addEventListener("visibilitychange", () => (document.hidden ? view.leave?.() : draw()));
setInterval(() => document.hidden || draw(), TICK_MILLISECONDS);
open();
