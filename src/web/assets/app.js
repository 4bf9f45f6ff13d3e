// The page: its address names the view, what is known is drawn again whenever it changes.

import { ApiError } from "./api.js";
import { askCancel, askDeploy } from "./dialogs.js";
import { h, show } from "./dom.js";
import { begin, refresh, state } from "./live.js";
import { repositoryWord } from "./text.js";
import { Activity, ContainerView, DeploymentView, Nowhere, Overview, RepositoryView, connectionLine, notices, to } from "./views.js";

/** Ages go on. */
const TICK_MILLISECONDS = 5_000;

const place = (id) => document.getElementById(id);
let view = null;
let startedVersion = null;
let isDrawing = false;

/** Draws once for all that changes in one go. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  queueMicrotask(() => {
    isDrawing = false;
    drawNow();
  });
}

function drawNow() {
  startedVersion ??= state.health?.version ?? null;
  const host = state.health?.host;
  document.title = [view.title(), "Shiparr", host].filter(Boolean).join(" · ");
  show(place("host"), host ?? "");
  show(place("connection"), connectionLine());
  show(place("notices"), notices(startedVersion));
  show(place("nav"), [["/", "Repositories"], ["/activity", "Activity"]].map(([route, text]) =>
    h("a", { href: to(route), "data-route": route, "aria-current": currentRoute().path === route ? "page" : null }, text)));
  show(place("view"), view.render());
  show(place("foot"), state.health?.version ? `Shiparr ${state.health.version}` : "");
  view.mounted?.();
}

// ---- Addresses ------------------------------------------------------------------------------------------------------

function currentRoute() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  return { path, query: new URLSearchParams(query) };
}

function viewOf({ path, query }) {
  let parts;
  try {
    parts = path.split("/").slice(1).map(decodeURIComponent);
  } catch {
    return new Nowhere();
  }
  const [kind, first, second, third, fourth] = parts;
  if (path === "/") return new Overview(query);
  if (kind === "activity" && parts.length === 1) return new Activity();
  if (kind === "deployments" && parts.length === 2 && /^\d+$/.test(first)) return new DeploymentView(Number(first));
  if (kind === "repositories" && parts.length === 3) return new RepositoryView(first, second);
  if (kind === "repositories" && parts.length === 5 && third === "containers") return new ContainerView(first, second, fourth);
  return new Nowhere();
}

async function open() {
  view?.leave?.();
  const opened = viewOf(currentRoute());
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
  if (view === opened && !isFirst && document.activeElement === document.body) focusHeading();
}

const focusHeading = () => (document.querySelector("#view h1") ?? place("main")).focus({ preventScroll: true });

async function loadView() {
  const loaded = view;
  await loaded.load?.();
  if (view === loaded) draw();
}

// ---- What people do -------------------------------------------------------------------------------------------------

const actions = {
  skip: () => place("main").focus(),
  deploy: ({ repository, commit }) => askDeploy(state.repositories.get(Number(repository)), commit, (id) => (location.hash = `#/deployments/${id}`)),
  cancel: ({ repository, deployment }) => {
    const one = deployment ? view.deployment : state.repositories.get(Number(repository)).last_deployment;
    askCancel(one, refresh);
  },
  more: () => view.more().then(draw, (error) => announce(error.message)),
  containers: () => view.loadContainers().then(draw),
  "reload-log": () => view.start(),
  "reload-page": () => location.reload(),
  "show-kind": ({ kind }) => filter(view.words, kind),
  "clear-filter": () => {
    filter("", "");
    place("filter").value = "";
    place("filter").focus();
  },
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

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, textarea, dialog");
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey || !place("filter")) return;
  event.preventDefault();
  place("filter").focus();
});

/** The filter is in the address, without a step of the history for each letter. */
function filter(words, kind) {
  history.replaceState(null, "", to(view.filter(words, kind)));
  draw();
}

function announce(text) {
  const line = h("p", {}, text);
  place("announcements").append(line);
  setTimeout(() => line.remove(), TICK_MILLISECONDS);
}

// ---- What happens ---------------------------------------------------------------------------------------------------

let containersTimer = null;

begin({
  changed: draw,
  reloaded: () => {
    draw();
    loadView();
  },
  deployment: (deployment) => {
    if (!view.take?.(deployment)) return;
    draw();
    if (!view.loadContainers) return;
    clearTimeout(containersTimer);
    containersTimer = setTimeout(() => view.loadContainers?.().then(draw), 500);
  },
  moved: (_, repository) => announce(`${repository.project}/${repository.name}: ${repositoryWord(repository)}`),
});
addEventListener("hashchange", open);
addEventListener("unhandledrejection", (event) => {
  // A tab that was left while it asked; everything else is a mistake of ours, and shows in the console.
  if (event.reason instanceof ApiError || event.reason?.name === "AbortError") event.preventDefault();
});
setInterval(() => document.hidden || draw(), TICK_MILLISECONDS);
open();
